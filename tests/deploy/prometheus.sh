#!/usr/bin/env bash
# Unpacks Debian's package prometheus, without installing it, so that no service is started, and prints the directory
# that holds `prometheus` and `promtool`.
#
# It stands outside the checkout, in FLINKS_BRIDGE_TEST_CACHE, else flinks-bridge under XDG_CACHE_HOME, else under
# ~/.cache, in a directory of its own that has its final name only when it is whole. FLINKS_BRIDGE_PROMETHEUS names a
# directory to take instead, where apt cannot bring the package.
set -euo pipefail

fail() {
  printf 'tests/deploy/prometheus.sh: %s; FLINKS_BRIDGE_PROMETHEUS may name a directory with prometheus and promtool\n' "$*" >&2
  exit 1
}

if [[ -n ${FLINKS_BRIDGE_PROMETHEUS:-} ]]; then
  [[ -x $FLINKS_BRIDGE_PROMETHEUS/prometheus && -x $FLINKS_BRIDGE_PROMETHEUS/promtool ]] ||
    fail "they are not both in $FLINKS_BRIDGE_PROMETHEUS"
  printf '%s\n' "$FLINKS_BRIDGE_PROMETHEUS"
  exit
fi

for tool in apt-cache apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "$tool is missing"
done
candidate() { apt-cache policy prometheus 2>/dev/null | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p'; }
version=$(candidate)
if [[ -z $version ]]; then
  # Without a list of packages there is nothing to download.
  as_root=()
  [[ $(id -u) == 0 ]] || as_root=(sudo -n)
  "${as_root[@]}" apt-get update -qq >&2 || true
  version=$(candidate)
fi
[[ -n $version ]] || fail 'apt knows no package prometheus'

root=${FLINKS_BRIDGE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flinks-bridge}/prometheus-${version//[^A-Za-z0-9.+-]/_}
if [[ ! -x $root/usr/bin/promtool ]]; then
  began=$SECONDS
  echo "unpacking prometheus $version into $root" >&2
  mkdir -p "${root%/*}"
  partial=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf "$partial"' EXIT
  # As root: the user of apt's sandbox may not write here.
  (cd "$partial" && apt-get download -qq -o APT::Sandbox::User=root "prometheus=$version" >&2) || fail 'no download'
  dpkg-deb -x "$partial"/prometheus_*.deb "$partial"
  rm "$partial"/prometheus_*.deb
  # Of two that ran at once one is first, and either is as good.
  mv -T "$partial" "$root" 2>/dev/null || true
  [[ -x $root/usr/bin/promtool ]]
  echo "unpacked after $((SECONDS - began)) s" >&2
fi
printf '%s\n' "$root/usr/bin"

#!/usr/bin/env bash
# Installs a cargo tool in the version named, and prints where it is.
#
#   tests/tool.sh NAME VERSION [--release]
#
# It stands outside the checkout, in FLINKS_BRIDGE_TEST_CACHE, else flinks-bridge under XDG_CACHE_HOME, else under
# ~/.cache, in a directory of its own that has its final name only when it is whole. Unoptimised: such tools judge files
# and start programs, which takes no time either way, and compile in half of it. A load generator wants `--release`.
set -euo pipefail
name=$1 version=$2 profile=${3:---debug}
# What cargo calls the optimised one is what it does by itself.
[[ $profile != --release ]] || profile=

root=${FLINKS_BRIDGE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flinks-bridge}/$name-$version
if [[ ! -x $root/bin/$name ]]; then
  began=$SECONDS
  echo "installing $name $version into $root" >&2
  mkdir -p "${root%/*}"
  partial=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf "$partial"' EXIT
  # shellcheck disable=SC2086  # none or one
  CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$partial/target \
    cargo install --quiet --locked $profile --root "$partial" --version "$version" "$name" >&2
  rm -rf "$partial/target"
  # Of two that ran at once one is first, and either is as good.
  mv -T "$partial" "$root" 2>/dev/null || true
  [[ -x $root/bin/$name ]]
  echo "installed after $((SECONDS - began)) s" >&2
fi
printf '%s\n' "$root/bin/$name"

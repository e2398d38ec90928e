#!/usr/bin/env bash
# Installs what a package-lock.json pins, outside the checkout, and prints the directory that has node_modules.
#
#   tests/deploy/npm.sh DIRECTORY
#
# It stands in FLINKS_BRIDGE_TEST_CACHE, else flinks-bridge under XDG_CACHE_HOME, else under ~/.cache, under a name made
# of the lock's content, which it has only when it is whole. No script of a package is run.
set -euo pipefail
from=$(cd "$1" && pwd)
for tool in node npm; do
  command -v "$tool" >/dev/null || { echo "tests/deploy/npm.sh: $tool is missing (Debian: nodejs npm)" >&2; exit 1; }
done

digest=$(cat "$from/package.json" "$from/package-lock.json" | sha256sum | cut -c 1-16)
root=${FLINKS_BRIDGE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flinks-bridge}/npm-$(basename "$from")-$digest
if [[ ! -d $root ]]; then
  began=$SECONDS
  echo "installing into $root" >&2
  mkdir -p "${root%/*}"
  partial=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf "$partial"' EXIT
  cp "$from/package.json" "$from/package-lock.json" "$partial/"
  npm ci --prefix "$partial" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
  # Of two that ran at once one is first, and either is as good.
  mv -T "$partial" "$root" 2>/dev/null || true
  [[ -d $root/node_modules ]]
  echo "installed after $((SECONDS - began)) s" >&2
fi
printf '%s\n' "$root"

#!/usr/bin/env bash
# Judges deploy/asyncapi.yaml with the AsyncAPI parser: no error, warning or hint is let through.
#
#   tests/deploy/contract.sh [FACTS]
#
# With FACTS, which tests/it/contract.rs writes, the contract is compared with what the bridge does. Needs Node 18 or
# later and npm; what npm brings is pinned by tests/deploy/contract/package-lock.json and kept outside the checkout, as
# tests/deploy/npm.sh says.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

modules=$("$here/npm.sh" "$here/contract")
# Modules are looked for beside the program that asks for them.
cp "$here/contract/contract.mjs" "$modules/contract.$$.mjs"
trap 'rm -f "$modules/contract.$$.mjs"' EXIT
node "$modules/contract.$$.mjs" "$here/../../deploy/asyncapi.yaml" "$@"

#!/usr/bin/env bash
# Counts the instructions of the hot functions and fails where one has more than its limit: see counts.rs. Needs valgrind,
# which tests/run.sh installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=$(sed -n '/^name = "gungraun"$/{n;s/^version = "\(.*\)"$/\1/p}' tests/fuzz/Cargo.lock)
GUNGRAUN_RUNNER=$(tests/tool.sh gungraun-runner "$version")
export GUNGRAUN_RUNNER
exec cargo bench --locked --manifest-path tests/fuzz/Cargo.toml --target-dir target/counts --bench counts "$@"

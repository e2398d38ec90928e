#!/usr/bin/env bash
# Measures flinks-bridge against the floor and the field on a real Apache Kafka of one node: see tests/bench/field/main.rs.
#
#   tests/bench/run.sh [--quick] [--rounds N] [--systems NAME,..] [--kafka ADDRESS] [PART..]
#
# On Debian 12 with Rust and a C compiler; needs Java 17 and Maven for Kafka, which tests/run.sh installs. Results go to
# target/bench.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

for tool in cargo cc java mvn taskset; do
  command -v "$tool" >/dev/null ||
    { echo "tests/bench/run.sh: $tool is missing; tests/run.sh installs what the tests and this need" >&2; exit 1; }
done
# Ten thousand connections at both ends.
open_files=$(ulimit -Hn)
[[ $open_files != unlimited && $open_files -le 65536 ]] || open_files=65536
ulimit -Sn "$open_files"

oha=$(tests/tool.sh oha 1.16.0 --release)
tests/kafka/fetch.sh >/dev/null
cargo build --release --locked
cargo bench --locked --bench field -- --oha "$oha" "$@"

#!/usr/bin/env bash
# Sets up all that the tests need on Debian 12 with Rust and a C compiler, then runs every one of them, those on a real
# Apache Kafka included. Installs Java 17, Maven, Python's venv, Node, haproxy and valgrind where it may
# (as root or with sudo that asks no password); otherwise it names what is missing and stops. It never skips.
#
# Arguments go to `cargo test`, and with any the fault matrix is left out; FLINKS_BRIDGE_LONG_FAULTS, set to anything,
# makes its loads longer and runs the rows that cost too much otherwise. The jars of Kafka are kept outside the checkout:
# see tests/kafka/fetch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Runs a step and says how long it took, also when it fails.
step() {
  local name=$1 began=$SECONDS result=0
  shift
  printf '\n== %s\n' "$name"
  # Not in an `if`: that would switch off `set -e` inside the functions that are steps.
  set +e
  (set -e; "$@")
  result=$?
  set -e
  printf '== %s: %s after %d s\n' "$name" "$([[ $result == 0 ]] && echo ok || echo "FAILED ($result)")" $((SECONDS - began))
  return "$result"
}

# A line per missing thing: what it is needed for, and the Debian packages that bring it after the tab.
missing() {
  local version
  command -v cargo >/dev/null || printf 'cargo: Rust, see https://rustup.rs\t\n'
  command -v cc >/dev/null || printf 'cc: librdkafka, zstd and the cryptography are compiled from source\tbuild-essential\n'
  command -v make >/dev/null || printf 'make: librdkafka and OpenSSL are built with it\tbuild-essential\n'
  # OpenSSL is configured by a Perl script that needs modules which `perl-base` alone does not have.
  perl -MFindBin -MIPC::Cmd -MFile::Compare -e 1 2>/dev/null || printf 'perl: OpenSSL is configured with it\tperl\n'
  version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1) || true
  [[ ${version:-0} -ge 17 ]] || printf 'java 17: Kafka runs on it (found: %s)\topenjdk-17-jre-headless\n' "${version:-none}"
  command -v javac >/dev/null || printf 'javac: the Java example is compiled with it\topenjdk-17-jdk-headless\n'
  command -v mvn >/dev/null || printf 'mvn: Maven fetches the jars of Kafka\tmaven\n'
  python3 -c 'import ensurepip, sqlite3' 2>/dev/null ||
    printf 'python3 with venv: the example consumer in Python runs in one\tpython3-venv\n'
  command -v node >/dev/null || printf 'node: the contract for consumers is judged with it\tnodejs\n'
  command -v npm >/dev/null || printf 'npm: it brings what judges the contract, and the example consumer in Node\tnpm\n'
  # Debian puts it where only root's PATH looks.
  PATH=$PATH:/usr/sbin command -v haproxy >/dev/null ||
    printf 'haproxy: the fault matrix replaces two ingresses behind it\thaproxy\n'
  unshare --map-root-user --mount true 2>/dev/null ||
    printf 'unshare: the fault matrix mounts a small disk in a namespace, which this system does not allow\t\n'
  command -v valgrind >/dev/null || printf 'valgrind: it counts the instructions of the hot functions\tvalgrind\n'
}

tools() {
  local found packages as_root=()
  found=$(missing)
  [[ -n $found ]] || { echo 'nothing is missing'; return; }
  packages=$(cut -f 2 <<<"$found" | sort -u | xargs)
  [[ $(id -u) == 0 ]] || as_root=(sudo -n)
  if [[ -n $packages ]] && command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    printf 'installing %s\n' "$packages"
    "${as_root[@]}" apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages
    found=$(missing)
    [[ -n $found ]] || return 0
  fi
  printf 'tests/run.sh: missing, and not to be installed from here:\n%s\n' "$(sed 's/\t\(..*\)/ (Debian: \1)/' <<<"$found")" >&2
  return 1
}

# Thousands of connections are part of the tests; where the hard limit is lower they say so themselves.
open_files=$(ulimit -Hn)
[[ $open_files != unlimited && $open_files -le 65536 ]] || open_files=65536
ulimit -Sn "$open_files"

step 'tools' tools
step 'jars of Apache Kafka' tests/kafka/fetch.sh
step 'contract for consumers' tests/deploy/contract.sh
step 'example consumers' tests/deploy/examples.sh
step 'compiling the tests' cargo test --locked --no-run
step 'compiling the fault matrix' cargo test --locked --no-run --test faults
step 'tests' cargo test --locked --no-fail-fast "$@"
# Some tests were asked for by name: these are not among them.
if [[ $# == 0 ]]; then
  step 'instructions of the hot functions' tests/bench/counts.sh
  step 'fault matrix' cargo test --locked --test faults -- ${FLINKS_BRIDGE_LONG_FAULTS:+--long}
fi
printf '\n== all of it: %d s\n' "$SECONDS"

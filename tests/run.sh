#!/usr/bin/env bash
# Sets up all that the tests need on Debian 12 with Rust and a C compiler, then runs every one of them, those on a real
# Apache Kafka included. Installs Java 17, Maven, Python's venv, Node, haproxy and valgrind where it may
# (as root or with sudo that asks no password); otherwise it names what is missing and stops. It never skips.
#
#   tests/run.sh                    everything, with the slowest tests and rows at the end
#   tests/run.sh --quick            what needs no real Kafka or haproxy, for those who change something: 90 s
#   tests/run.sh ARGUMENTS          goes to `cargo test`, without the fault matrix and the counts
#
# FLINKS_BRIDGE_LONG_FAULTS, set to anything, makes the fault matrix' loads longer, runs the rows that cost too much
# otherwise, and then all that needs a real Kafka again on the version after the one that is tested always. The jars of
# Kafka are kept outside the checkout: see tests/kafka/fetch.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/steps.sh

# Tests on a real Kafka or behind a real haproxy, which `--quick` leaves out.
real=(
  audit::a_leader_that_falls_meanwhile_changes_nothing
  audit::real_partitions_with_gaps
  audit::real_topics_are_read_from_the_time_of_the_ledger
  audit::what_compaction_took_cannot_be_told
  check::a_cluster_without_groups_is_no_fault_and_links_take_memory
  check::what_is_wrong_in_a_real_cluster_is_named
  consumer::on_a_real_kafka_nothing_is_lost_and_no_key_has_two_at_work
  durability::large_webhooks_do_not_hurt_small_ones
  durability::with_one_broker_lost_each_webhook_is_answered_200_and_stored
  enrich::killed_over_and_over_each_record_has_its_results
  examples::the_examples_work_on_each_webhook_once
  kafka_harness::a_link_has_a_rate_and_can_be_cut
  kafka_harness::a_missing_topic_is_made_up_only_by_a_broker_that_was_told_to
  kafka_harness::nothing_is_left_behind
  kafka_harness::records_outlive_every_fault_of_one_node
  link::a_compacted_topic_is_read_and_one_made_anew_is_noticed
  proxy::behind_haproxy_each_sender_has_its_own_address
  proxy::behind_haproxy_only_listed_senders_are_served
  recover::of_a_real_kafka_no_more_is_read_than_may_hold_a_loss_and_with_the_least_permissions
  redrive::a_topic_that_is_denied_meanwhile_is_left_and_the_others_go
  redrive::killed_in_the_middle_of_transactions_nothing_is_doubled_or_lost
  redrive::on_a_real_kafka_rates_signals_rivals_and_large_records_are_handled
  rescue::in_a_failover_everything_is_answered_200_and_nothing_stays_on_disk
  rescue::what_is_sent_once_outlives_kafka_and_the_ingress
  security::roles_with_the_least_permissions_and_credentials_that_change
  topics::topics_are_made_mended_and_left_alone
  topics::what_was_set_aside_is_compacted_if_every_key_is_a_ce_id
)

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
    printf 'haproxy: tests and the fault matrix have ingresses behind it\thaproxy\n'
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

# Compiles everything that is tested, the fault matrix too.
compile() {
  cargo test --locked --no-run
  cargo test --locked --no-run --test faults
}

# How many tests run at once for each core: they wait for most of their time.
at_once=4

# Runs the tests. How long each took is told only by the harness of a nightly compiler, or by one that takes itself for such
# a one; nothing is compiled differently.
cargo_test() {
  local host
  host=$(rustc -vV | sed -n 's/^host: //p')
  host=${host//-/_}
  export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((at_once * $(nproc) < 32 ? at_once * $(nproc) : 32))}
  env "CARGO_TARGET_${host^^}_RUNNER=env RUSTC_BOOTSTRAP=1" \
    cargo test --locked --no-fail-fast --lib --bins --tests -- -Z unstable-options --report-time "$@" |
    tee target/tests.log
}

quick() {
  local skipped at_once=16
  # Whoever starts a Kafka all the same fails, so that none is missing above.
  export FLINKS_BRIDGE_QUICK=1
  skipped=("${real[@]/#/--skip=}")
  cargo_test --exact "${skipped[@]}"
}

# The ten that took longest, of the tests and of the fault matrix.
slowest() {
  {
    sed -nE 's/^test (.*) \.\.\. .* <([0-9.]+)s>$/\2 test \1/p' target/tests.log
    cat target/faults/times
  } | sort -rn | head -n 10 | sed -E 's/^([0-9.]+) (.*)$/\1 s\t\2/'
}

# Thousands of connections are part of the tests; where the hard limit is lower they say so themselves.
open_files=$(ulimit -Hn)
[[ $open_files != unlimited && $open_files -le 65536 ]] || open_files=65536
ulimit -Sn "$open_files"

if [[ ${1:-} == --quick ]]; then
  step 'tests without a real Kafka' quick
  finish 90
fi
step 'tools' tools
# What is fetched and waited for, while the tests are compiled.
beside 'jars of Apache Kafka' tests/kafka/fetch.sh
beside 'contract for consumers' tests/deploy/contract.sh
beside 'example consumers' tests/deploy/examples.sh
step 'compiling the tests' compile
join_beside
if [[ $# != 0 ]]; then
  # Some tests were asked for by name.
  step 'tests' cargo test --locked --no-fail-fast "$@"
  exit
fi
# It counts instructions, which nothing beside it changes.
beside 'instructions of the hot functions' tests/bench/counts.sh
# Twenty times as many seeds as among the tests.
beside 'the door, simulated' env FLINKS_BRIDGE_SIM_SEEDS="10000${FLINKS_BRIDGE_LONG_FAULTS:+0}" cargo test --locked --test sim
step 'tests' cargo_test
step 'documentation tests' cargo test --locked --doc
# Its rows fill disks and stop clocks: what others write and compile meanwhile would be among their faults.
step 'what runs beside' alone
step 'fault matrix' cargo test --locked --test faults -- ${FLINKS_BRIDGE_LONG_FAULTS:+--long}
join_beside
printf '\n== the slowest tests and rows\n%s\n' "$(slowest)"
if [[ -n ${FLINKS_BRIDGE_LONG_FAULTS:-} ]]; then
  export FLINKS_BRIDGE_TEST_KAFKA=4.4.0
  step 'jars of the next Kafka' tests/kafka/fetch.sh
  step 'tests on the next Kafka' cargo_test --exact "${real[@]}"
  step 'fault matrix on the next Kafka' cargo test --locked --test faults
  exit
fi
# On two cores with nothing compiled; 720 s where all is.
finish 1080

#!/usr/bin/env bash
# Fuzzes what the outside world writes: the body of a webhook, its signature headers, the configuration. Each target
# starts from the stored corpus in tests/fuzz/corpus/<target>/ and asserts the properties of properties.rs.
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]     60 seconds in all by default, shared by the targets
#
# libFuzzer needs a nightly compiler. Where none is installed the step says so, runs the stored corpus on the compiler
# at hand, and ends with 75: nothing new was tried. cargo-fuzz itself is installed, its version pinned, outside the
# checkout. What makes a property fail is left in tests/fuzz/artifacts/<target>/ and belongs, once mended, into the
# corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

toolchain=${FLINKS_BRIDGE_NIGHTLY:-nightly}

seconds=${1:-60}
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(body signature config)
if [[ ! $seconds =~ ^[0-9]+$ || $seconds -lt ${#targets[@]} ]]; then
  echo "tests/fuzz/run.sh: SECONDS must be a number, at least one for each target" >&2
  exit 64
fi

if ! rustup run "$toolchain" rustc --version 2>/dev/null; then
  echo "no $toolchain compiler is installed, which libFuzzer needs: running the stored corpus alone"
  cargo test --locked --test it -- fuzz_corpus
  exit 75
fi
cargo_fuzz=$(tests/tool.sh cargo-fuzz 0.13.2)

# Without a sanitizer: the targets have no unsafe code to watch, and the one C library among their dependencies would
# not be instrumented anyway; a build takes a fraction of the time and tries are several times as many. Debug
# assertions and overflow checks are on.
fuzz() {
  RUSTUP_TOOLCHAIN=$toolchain "$cargo_fuzz" "$@"
}
common=(--fuzz-dir tests/fuzz --target-dir target/fuzz --features fuzz --sanitizer none)

began=$SECONDS
# What is fuzzed is what is shipped: every package that both have is there in the same version.
packages() {
  sed -n '/^name = /{N;s/\n/ /;p}' "$1" | sort
}
others=$(comm -13 <(packages Cargo.lock) <(packages tests/fuzz/Cargo.lock) |
  grep -Ff <(sed -n 's/^name = .*/& version/p' Cargo.lock) || true)
if [[ -n $others ]]; then
  printf 'tests/fuzz/Cargo.lock has other versions than Cargo.lock, copy that and build anew:\n%s\n' "$others" >&2
  exit 1
fi
fuzz build "${common[@]}"
echo "built after $((SECONDS - began)) s"

found=0
each=$((seconds / ${#targets[@]}))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do
  # What it finds new goes to a directory that is thrown away; the stored corpus is only read.
  mkdir "$work/$target"
  dictionary=()
  [[ ! -f tests/fuzz/$target.dict ]] || dictionary=("-dict=tests/fuzz/$target.dict")
  printf '\n== fuzzing %s for %d s\n' "$target" "$each"
  # An input that takes 10 s is a defect too: every target is linear in its input, which is at most 64 KiB.
  if fuzz run "${common[@]}" "$target" "$work/$target" "tests/fuzz/corpus/$target" -- \
    -max_total_time="$each" -max_len=65536 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
    "${dictionary[@]}" </dev/null &>"$work/$target.log"; then
    grep '^stat::' "$work/$target.log"
  else
    cat "$work/$target.log"
    echo "== $target: FAILED, see tests/fuzz/artifacts/$target"
    found=1
  fi
done
exit "$found"

#!/usr/bin/env bash
# Prepares the example consumers (deploy/examples) to be run, and prints how each is started: a line each, its name and
# its words, separated by tabs.
#
# Needs python3 with venv, a JDK 17, Maven, Node 18 and npm. What is installed or built stands outside the checkout, in
# FLINKS_BRIDGE_TEST_CACHE, else flinks-bridge under XDG_CACHE_HOME, else under ~/.cache, in directories named after what
# they are made from; each has its final name only when it is whole.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
examples=$(cd "$here/../../deploy/examples" && pwd)
cache=${FLINKS_BRIDGE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flinks-bridge}

fail() {
  printf 'tests/deploy/examples.sh: %s\n' "$*" >&2
  exit 1
}

# Makes $cache/$1 by the function $2, called with the directory to fill; what it is made from goes into the name.
made() {
  local root=$cache/$1 partial
  if [[ ! -d $root ]]; then
    local began=$SECONDS
    echo "preparing $root" >&2
    mkdir -p "$cache"
    partial=$(mktemp -d "$root.XXXXXX")
    if ! (set -e; "$2" "$partial") >&2; then
      rm -rf "$partial"
      fail "$root could not be made; the reason stands above"
    fi
    # Of two that ran at once one is first, and either is as good.
    mv -T "$partial" "$root" 2>/dev/null || rm -rf "$partial"
    echo "prepared after $((SECONDS - began)) s" >&2
  fi
  printf '%s\n' "$root"
}

digest() {
  cat "$@" | sha256sum | cut -c 1-16
}

# The steps are joined by `&&`: within a condition `set -e` has no effect.
python() {
  python3 -m venv "$1" &&
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --only-binary :all: \
      --requirement "$examples/python/requirements.txt"
}

java_jar() {
  cp -r "$examples/java/pom.xml" "$examples/java/src" "$1/" &&
    mvn --batch-mode -Dstyle.color=never --strict-checksums --quiet --file "$1/pom.xml" package &&
    [[ -f $1/target/consumer.jar ]]
}

# The program stands beside the modules that it asks for.
node_program() {
  cp "$examples/node/consumer.mjs" "$1/" && ln -s "$modules/node_modules" "$1/node_modules"
}

command -v python3 >/dev/null && python3 -c 'import ensurepip, sqlite3, venv' 2>/dev/null ||
  fail 'python3 with venv is missing (Debian: python3-venv)'
command -v javac >/dev/null || fail 'javac is missing (Debian: openjdk-17-jdk-headless)'
command -v mvn >/dev/null || fail 'mvn is missing (Debian: maven)'

version=$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
venv=$(made "example-python-$version-$(digest "$examples/python/requirements.txt")" python)
jar=$(made "example-java-$(digest "$examples/java/pom.xml" "$examples/java/src/main"/*/*)" java_jar)
modules=$("$here/npm.sh" "$examples/node")
program=$(made "example-node-$(digest "$examples/node"/*)" node_program)
runtime=$("$here/npm.sh" "$here/node")
node=$(compgen -G "$runtime/node_modules/node-linux-*/bin/node") || fail 'there is no Node for this processor'

printf 'python\t%s\t%s\n' "$venv/bin/python" "$examples/python/consumer.py"
printf 'java\tjava\t-jar\t%s\n' "$jar/target/consumer.jar"
printf 'node\t%s\t%s\n' "$node" "$program/consumer.mjs"

#!/usr/bin/env bash
# Fetches the jars of Apache Kafka through Maven into a cache outside the checkout, and prints the directory.
#
# The cache is FLINKS_BRIDGE_TEST_CACHE, else flinks-bridge under XDG_CACHE_HOME, else under ~/.cache. The directory
# appears under its final name only when it is whole, and a lock makes a second call wait for the first, so that any
# number may run at once. With the jars in place nothing is downloaded and Maven is not needed.
set -euo pipefail

kafka_version=4.3.0
log4j_version=2.25.4
# The plugin is named in full, so that the same one runs whatever Maven's own defaults are.
plugin=org.apache.maven.plugins:maven-dependency-plugin:3.8.1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${FLINKS_BRIDGE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flinks-bridge}
jars=$cache/kafka-$kafka_version

fail() {
  printf 'tests/kafka/fetch.sh: %s\n' "$*" >&2
  exit 1
}

# The broker runs on Java 17 or later, so that is asked first, jars or none.
command -v java >/dev/null || fail "java is missing: Kafka $kafka_version needs Java 17 (Debian: openjdk-17-jre-headless)"
java_version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
[[ ${java_version:-0} -ge 17 ]] || fail "java on the PATH is version ${java_version:-unknown}: Kafka $kafka_version needs Java 17"

if [[ ! -d $jars ]]; then
  command -v mvn >/dev/null || fail "mvn is missing: the jars of Kafka $kafka_version come through Maven (Debian: maven)"
  command -v flock >/dev/null || fail "flock is missing (Debian: util-linux)"
  mkdir -p "$cache"
  exec 9>"$jars.lock"
  flock 9
fi

if [[ ! -d $jars ]]; then
  # Whatever an interrupted call left behind is nobody's now: the lock is ours.
  rm -rf "$jars.partial"
  mkdir "$jars.partial"
  cp "$here/pom.xml" "$jars.partial/"
  mvn --batch-mode -Dstyle.color=never --strict-checksums --quiet --file "$jars.partial/pom.xml" \
    -Dkafka.version="$kafka_version" -Dlog4j.version="$log4j_version" \
    "$plugin:copy-dependencies" -DincludeScope=runtime -DoutputDirectory="$jars.partial/lib" >&2 ||
    fail "Maven could not fetch Kafka $kafka_version; its message stands above"
  [[ -f $jars.partial/lib/kafka_2.13-$kafka_version.jar ]] || fail "Maven fetched no kafka_2.13-$kafka_version.jar"
  mv -T "$jars.partial" "$jars"
fi

printf '%s\n' "$jars"

#!/usr/bin/env bash
# Fetches the jars of Apache Kafka through Maven into a cache outside the checkout, and prints two directories, a line
# each: the one with the jars, and one that makes nodes start in half of their time. That has the JVM's archive of the
# classes that a node loads (`classes.jsa`), and what formatting writes into the storage of each (`storage`, without what is
# a node's own); both are made by formatting and starting a node once.
#
# The version is FLINKS_BRIDGE_TEST_KAFKA, else the one below. The cache is FLINKS_BRIDGE_TEST_CACHE, else flinks-bridge
# under XDG_CACHE_HOME, else under ~/.cache. Each directory appears under its final name only when it is whole, and a lock
# makes a second call wait for the first, so that any number may run at once. With the jars in place nothing is downloaded and Maven is not needed.
set -euo pipefail

kafka_version=${FLINKS_BRIDGE_TEST_KAFKA:-4.3.0}
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
java=$(java -version 2>&1)
java_version=$(sed -n 's/.* version "\([0-9]*\).*/\1/p' <<<"$java" | head -n 1)
[[ ${java_version:-0} -ge 17 ]] || fail "java on the PATH is version ${java_version:-unknown}: Kafka $kafka_version needs Java 17"

# Another Java does not read the archive, and another script may make it otherwise.
prepared=$jars-node-$(cat - "$here/fetch.sh" <<<"$java" | sha256sum | head -c 12)

if [[ ! -d $jars ]]; then
  command -v mvn >/dev/null || fail "mvn is missing: the jars of Kafka $kafka_version come through Maven (Debian: maven)"
fi
if [[ ! -d $jars || ! -d $prepared ]]; then
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

# Formats and starts a node in the directory given, on two ports of those that the kernel does not hand out by itself.
start_once() {
  local into=$1 port=$((10000 + RANDOM % 20000)) result=0
  local java=(java -Xmx512m -XX:+UseSerialGC -XX:-UsePerfData -XX:TieredStopAtLevel=1)
  cat >"$into/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=CLIENT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs=$into/data
PROPERTIES
  "${java[@]}" -Dlog4j2.configurationFile="$here/log4j2.properties" -cp "$jars/lib/*" kafka.tools.StorageTool \
    format --cluster-id Zmxpbmtz-GJyaWRnZQAAAA --config "$into/server.properties" >"$into/log" 2>&1 || return
  cp -r "$into/data" "$into/storage" && rm "$into/storage/meta.properties" || return
  "${java[@]}" -XX:ArchiveClassesAtExit="$into/classes.jsa" -Dlog4j2.configurationFile="$here/log4j2.properties" \
    -cp "$jars/lib/*" kafka.Kafka "$into/server.properties" >>"$into/log" 2>&1 &
  node=$!
  until grep -q 'Kafka Server started' "$into/log" || ! kill -0 "$node" 2>/dev/null; do sleep 0.1; done
  kill "$node" 2>/dev/null || true
  wait "$node" || result=$?
  node=
  # Ended by the signal that it was sent.
  [[ $result == 143 && -f $into/classes.jsa ]]
}

if [[ ! -d $prepared ]]; then
  partial=$(mktemp -d "$prepared.XXXXXX") node=
  trap '[[ -z $node ]] || kill -9 "$node"; rm -rf "$partial"' EXIT
  # The ports may be another's.
  for attempt in 1 2 3; do
    rm -rf "${partial:?}"/*
    ! start_once "$partial" || break
    [[ $attempt != 3 ]] || { cat "$partial/log" >&2; fail 'a node of Kafka does not start; what it said stands above'; }
  done
  mkdir "$partial/whole"
  mv "$partial/classes.jsa" "$partial/storage" "$partial/whole/"
  mv -T "$partial/whole" "$prepared"
fi

printf '%s\n' "$jars" "$prepared"

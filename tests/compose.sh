#!/usr/bin/env bash
# Tests deploy/Dockerfile and docker-compose.yml as a user would meet them: builds the image, brings everything up, sends
# a thousand webhooks while a node of Kafka is killed, audits them, looks at attributes, Prometheus and scaling, takes
# everything down and up again, and audits once more. Prints what it saw; ends at the first thing that is not as it should be.
#
# It needs Docker with compose and buildx, curl, jq, objcopy and python3, about ten minutes and 4 GB of memory, and is no
# part of tests/run.sh for that. It removes all that it made but the image, and refuses to run where a project of its name, or one
# of the ports that docker-compose.yml publishes, is in use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What docker-compose.yml would take from whoever calls.
unset RUN COUNT RATE FLINKS_WEBHOOK_SECRET COMPOSE_FILE COMPOSE_PROFILES
export COMPOSE_PROJECT_NAME=flinks-bridge-test
image=flinks-bridge:local
admin=http://127.0.0.1:9464
prometheus=http://127.0.0.1:9090

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
die() { printf 'tests/compose.sh: %s\n' "$*" >&2; exit 1; }

# Asks until a command succeeds; after so many seconds, it says what was not to be had.
within() {
  local seconds=$1 what=$2 until=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || die "not within $seconds s: $what"
    sleep 0.2
  done
}

for tool in docker curl jq objcopy python3; do
  command -v "$tool" >/dev/null || die "missing: $tool"
done
docker info >/dev/null 2>&1 || die 'no Docker engine answers'
[[ -z $(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME") ]] ||
  die "containers of a project $COMPOSE_PROJECT_NAME are there already"
for port in 8443 9464 9090 19092 29092 39092; do
  ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || die "port $port is in use"
done

scratch=$(mktemp -d)
finish() {
  local result=$?
  if ((result != 0)); then
    docker compose ps -a >&2 || true
    docker compose --profile simulate logs --no-color --tail 5 2>&1 | cut -c 1-400 >&2 || true
  fi
  docker compose --profile simulate down -v --remove-orphans --timeout 10 >/dev/null 2>&1 || true
  [[ -z ${made:-} ]] || docker rm -f "$made" >/dev/null 2>&1 || true
  rm -rf "$scratch"
  exit "$result"
}
trap finish EXIT

# ---- the image --------------------------------------------------------------------------------------------------------
docker compose build --quiet
say 'image built'
bytes=$(docker image inspect --format '{{.Size}}' $image)
say "image: $((bytes / 1000000)) MB"
((bytes < 60000000)) || die "the image has $bytes bytes, and was to stay below 60 MB"
[[ $(docker image inspect --format '{{.Config.User}}' $image) == 65532:65532 ]] || die 'the image does not name its user'
docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.title"}}' $image |
  grep -qx flinks-bridge || die 'the image has no OCI labels'
! docker run --rm --entrypoint /bin/sh $image -c true 2>/dev/null || die 'the image has a shell'
docker run --rm --read-only --network none --cap-drop ALL $image --version | sed 's/^/        /'
made=$(docker create "$image")
docker cp -q "$made:/usr/local/bin/flinks-bridge" "$scratch/" || die 'the binary cannot be copied out of the image'
docker rm "$made" >/dev/null
made=
objcopy --dump-section .dep-v0="$scratch/crates" "$scratch/flinks-bridge" "$scratch/unused"
crates=$(python3 -c 'import json, sys, zlib; print(len(json.loads(zlib.decompress(open(sys.argv[1], "rb").read()))["packages"]))' \
  "$scratch/crates")
say "the binary lists the $crates crates that it is made of"

# ---- up ---------------------------------------------------------------------------------------------------------------
docker compose up -d --quiet-pull >"$scratch/up" 2>&1 || { tail -n 5 "$scratch/up" >&2; die 'docker compose up failed'; }
ready() { curl -fsS "$admin/readyz"; }
within 240 'the ingress is ready' ready
say 'up: the ingress is ready'
[[ $(docker inspect --format '{{.State.ExitCode}}' "$(docker compose ps -aq topics)") == 0 ]] || die 'topics create failed'

# From the start of the process to ready, Kafka being up, and what it takes then. The other way than `restart` counts
# the engine's own work as well.
docker compose stop ingress >/dev/null 2>&1
began=$(date +%s%N)
docker compose start ingress >/dev/null 2>&1
until ready >/dev/null 2>&1; do sleep 0.02; done
ready_at=$(date +%s%N)
started=$(date -d "$(docker inspect --format '{{.State.StartedAt}}' "$(docker compose ps -q ingress)")" +%s%N)
say "ingress ready $(((ready_at - started) / 1000000)) ms after its container's start, $(((ready_at - began) / 1000000)) ms after the command"
metric() { curl -fsS "$admin/metrics" | awk -v name="$1" '$1 ~ "^" name "(\\{|$)" { sum += $2 } END { printf "%d\n", sum }'; }
[[ $(metric bridge_ingress_rescue_usable) == 1 ]] || die 'the ingress cannot use the volume for what is sent once'
say "ingress idle: $(($(metric process_resident_memory_bytes) / 1048576)) MiB resident"

# ---- a thousand webhooks, and a node killed meanwhile -------------------------------------------------------------------
wait_for() {
  local container
  container=$(docker compose ps -aq "$1")
  [[ $(docker wait "$container") == 0 ]] || { docker logs "$container" >&2; die "$1 did not end with 0"; }
}
docker compose up -d simulate >/dev/null 2>&1
enough() { (($(metric bridge_ingress_requests_total) >= 300)); }
within 120 '300 webhooks have been sent' enough
docker compose kill kafka-2 >/dev/null 2>&1
say 'kafka-2 killed, with 300 of 1,000 webhooks sent'
wait_for simulate
docker compose logs --no-color --no-log-prefix simulate | sed 's/^/        /'
docker compose start kafka-2 >/dev/null 2>&1
audited() {
  docker compose up -d --no-deps --force-recreate audit >/dev/null 2>&1
  wait_for audit
  docker compose logs --no-color --no-log-prefix audit | sed 's/^/        /'
}
audited
say "audit clean, with $(metric bridge_kafka_possibly_persisted_total) possibly persisted"

# ---- Prometheus ---------------------------------------------------------------------------------------------------------
query() { curl -fsS --get "$prometheus/api/v1/query" --data-urlencode "query=$1" | jq -r '.data.result[0].value[1] // empty'; }
all_up() { [[ $(query 'count(up == 1)') -ge 4 && -z $(query 'up == 0') ]]; }
within 60 'all targets of Prometheus are up: ingress, two enrich, link' all_up
rules=$(curl -fsS "$prometheus/api/v1/rules" | jq '[.data.groups[].rules[]] | length')
broken=$(curl -fsS "$prometheus/api/v1/rules" | jq -r '[.data.groups[].rules[] | select(.health == "err") | .name] | join(" ")')
((rules > 0)) && [[ -z $broken ]] || die "Prometheus has $rules rules, and cannot evaluate: $broken"
say "Prometheus: $(query 'count(up == 1)') targets up, $rules rules loaded, none in error"

# ---- attributes, and how their rate grows --------------------------------------------------------------------------------
offsets() {
  docker compose exec -T kafka-1 /opt/kafka/bin/kafka-get-offsets.sh --bootstrap-server kafka-1:9092 --topic "$1" |
    awk -F: '{ sum += $3 } END { print sum + 0 }'
}
enriched() { query 'sum(bridge_enrich_results_total)'; }
some() { (($(enriched) > 0)); }
within 120 'attributes are made' some
RUN=2 COUNT=3000 RATE=300 docker compose up -d --no-deps --force-recreate simulate >/dev/null 2>&1
wait_for simulate
lag() { query 'sum(bridge_consumer_lag{role="enrich"})'; }
behind() { (($(lag) > 400)); }
within 60 'enrich is behind by 400 records' behind
rate_now() {
  local before after
  before=$(offsets flinks.attributes)
  sleep 20
  after=$(offsets flinks.attributes)
  echo $((after - before))
}
two=$(rate_now)
docker compose up -d --no-deps --no-recreate --scale enrich=4 enrich >/dev/null 2>&1
four_members() { [[ $(query 'count(bridge_consumer_ready{role="enrich"} == 1)') == 4 ]]; }
within 90 'four enrich share the partitions' four_members
four=$(rate_now)
say "attributes in 20 s: $two with two enrich, $four with four; lag then $(lag)"
((four > two)) || die 'more processes made no more attributes'

# ---- a restart loses nothing ----------------------------------------------------------------------------------------------
stored=$(offsets flinks.kyc)
persisted=$(metric bridge_kafka_possibly_persisted_total)
doubled=$(metric bridge_kafka_possibly_doubled_total)
docker compose --profile simulate down --timeout 80 >/dev/null 2>&1
docker compose up -d >/dev/null 2>&1
within 240 'the ingress is ready again' ready
[[ $(offsets flinks.kyc) == "$stored" ]] || die 'a restart of everything changed flinks.kyc'
# The ingress has begun to count anew.
docker compose run --rm --no-deps -T audit audit --config=/etc/flinks-bridge/flinks-bridge.toml \
  --ledger=/var/lib/flinks-bridge/1.ledger --possibly-persisted="$persisted" --possibly-doubled="$doubled" --quiet |
  sed 's/^/        /' || die 'the audit after the restart'
say "down and up again: flinks.kyc has its $stored records, audit clean"
say 'all as it should be'

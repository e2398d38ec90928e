#!/usr/bin/env bash
# Prints the libraries in C that Cargo.lock brings, which `cargo deny` does not see, with the end of their support where
# it is known, and fails where one is of a series that is not named here: whoever takes a new one looks it up.
#
# How they are followed: a new version comes with its crate by `cargo update`; each project's own list of advisories is
# named below and is read with every release of the bridge.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version() {
  sed -n "/^name = \"$1\"\$/{n;s/^version = \"\(.*\)\"\$/\1/p}" Cargo.lock
}

# A file of a crate's source.
source_of() {
  cargo metadata --locked --format-version 1 --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" |
    python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(os.path.dirname(next(p["manifest_path"] for p in packages if p["name"] == sys.argv[1])))' "$1"
}

openssl=$(version openssl-src)
rdkafka=$(version rdkafka-sys)
zstd=$(version zstd-sys)
jemalloc=$(version tikv-jemalloc-sys)
zlib=$(sed -n 's/^#define ZLIB_VERSION "\(.*\)"$/\1/p' "$(source_of libz-sys)/src/zlib/zlib.h")
aws_lc=$(sed -n 's/^#define AWSLC_VERSION_NUMBER_STRING "\(.*\)"$/\1/p' "$(source_of aws-lc-sys)/aws-lc/include/openssl/base.h")

while IFS=$'\t' read -r name found series support advisories; do
  printf '%-10s %-10s %s; %s\n' "$name" "$found" "$support" "$advisories"
  if [[ $found != $series ]]; then
    echo "tests/libraries.sh: $name $found is not of the series $series: look up its support, and write it here" >&2
    exit 1
  fi
done <<LIBRARIES
librdkafka	${rdkafka#*+}	2.*	the newest release alone	https://github.com/confluentinc/librdkafka/releases
OpenSSL	${openssl#*+}	3.6.*	ended on 2026-11-01; 3.5, supported until 2030-04-08, has a crate with fewer corrections, and 4.0 none that librdkafka's takes	https://openssl-library.org/news/vulnerabilities
zlib	$zlib	1.4*	the newest release alone	https://zlib.net
zstd	${zstd#*zstd.}	1.5.*	the newest release alone	https://github.com/facebook/zstd/releases
jemalloc	$(cut -d - -f 1 <<<"${jemalloc#*+}")	5.3.*	the newest release alone	https://github.com/jemalloc/jemalloc/releases
AWS-LC	$aws_lc	5.*	the newest release alone	https://aws.amazon.com/security/security-bulletins
LIBRARIES

#!/usr/bin/env bash
# Installs kafkajs for the peer in Node and prints the directory that has node_modules.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec ../../deploy/npm.sh node

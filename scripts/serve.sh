#!/usr/bin/env bash
# Serves a model until Ctrl-C: the bundled one, or the folder in MODEL. More flags may follow, see ddl_server --help.
set -euo pipefail
cd "$(dirname "$0")/.."
exec build/release/bin/ddl_server --model="${MODEL:-models/ddl-demo}" \
  --grpc_address="${GRPC_ADDRESS:-127.0.0.1:8500}" --metrics_address="${METRICS_ADDRESS:-127.0.0.1:9464}" "$@"

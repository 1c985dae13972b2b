#!/usr/bin/env bash
# Starts the server on the bundled demo model, calls it with the Python client, stops it with SIGTERM.
# Exits 0 only if the client was served and the server ended cleanly. Prints at most 40 lines.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly log=build/demo-server.log
readonly start_deadline_seconds=60
server_pid=

stop_server() {
  local status=0
  [ -n "$server_pid" ] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true
  wait "$server_pid" || status=$?
  server_pid=
  return "$status"
}
trap 'stop_server || true' EXIT
trap 'exit 130' INT TERM

# Prints what stands behind NAME= on the server's "listening" line.
address() { sed -n "s/.*listening .*$1=\([^ ]*\).*/\1/p" "$log" | tail -n 1; }

printf '== Starting the server\n$ ddl_server --model=models/ddl-demo --grpc_address=127.0.0.1:0 --metrics_address=127.0.0.1:0\n'
: >"$log"  # an earlier run's addresses must not be taken for this one's
build/release/bin/ddl_server --model=models/ddl-demo --grpc_address=127.0.0.1:0 \
  --metrics_address=127.0.0.1:0 2>"$log" &
server_pid=$!

for ((waited = 0; ; waited++)); do
  [ -z "$(address metrics_address)" ] || break
  if ! kill -0 "$server_pid" 2>/dev/null || ((waited >= start_deadline_seconds * 10)); then
    printf 'The server did not start. Its log:\n' >&2
    cat "$log" >&2
    exit 1
  fi
  sleep 0.1
done

.venv/bin/python -m ddl_client demo --address "$(address grpc_address)" --metrics "$(address metrics_address)" || {
  printf 'The demo failed. The log of the server:\n' >&2
  cat "$log" >&2
  exit 1
}

printf '\n== Stopping the server with SIGTERM; its last lines\n'
status=0
stop_server || status=$?
tail -n 6 "$log"  # the calls, and the stop
printf 'exit code %s\n' "$status"
exit "$status"

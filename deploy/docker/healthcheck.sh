#!/bin/bash
# Exits 0 while the server is ready, as its metrics page says: loaded, and not draining. Docker's HEALTHCHECK.
# Only bash is needed. It knows the page's port from DDL_METRICS_ADDRESS: set the address there, not by a flag.
set -u
address=${DDL_METRICS_ADDRESS:-0.0.0.0:9464}
exec 3<>"/dev/tcp/127.0.0.1/${address##*:}" || exit 1
printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
while IFS= read -r line <&3; do
  [[ ${line%$'\r'} != 'ddl_server_ready 1' ]] || exit 0
done
exit 1

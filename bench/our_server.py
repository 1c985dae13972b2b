"""Our server as the benchmarks start it: on free ports, until it is ready."""

import contextlib
import re
import signal
import subprocess
import sys


@contextlib.contextmanager
def running(build, folder, *flags):
    """(process, gRPC address) of a server on a checkpoint, once it is ready; stopped by SIGTERM on leaving."""
    command = [build / "bin/ddl_server", f"--model={folder}", "--grpc_address=127.0.0.1:0", "--metrics_address=127.0.0.1:0", *flags]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        log, address = "", None
        for line in process.stderr:
            log += line
            if listening := re.search(r"\bgrpc_address=(\S+)", line):
                address = listening.group(1)
            if " ready " in line:
                break
        else:
            sys.exit(f"the server of {folder} did not start:\n{log}")
        yield process, address
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()

"""Our server as the benchmarks start it: on free ports, until it is ready."""

import collections
import contextlib
import re
import signal
import subprocess
import sys
import threading


@contextlib.contextmanager
def running(build, folder, *flags):
    """(process, gRPC address, address of the metrics) of a server on a checkpoint, once it is ready; stopped by SIGTERM on leaving."""
    command = [build / "bin/ddl_server", f"--model={folder}", "--grpc_address=127.0.0.1:0", "--metrics_address=127.0.0.1:0", *flags]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        log = ""
        for line in process.stderr:
            log += line
            if " ready " in line:
                break
        else:
            sys.exit(f"the server of {folder} did not start:\n{log}")
        address, metrics_address = (re.search(rf"\b{name}=(\S+)", log).group(1) for name in ("grpc_address", "metrics_address"))
        # Were the log not read on, the pipe would fill, and then the server would keep thousands of lines for it.
        threading.Thread(target=collections.deque, args=[process.stderr, 0]).start()
        yield process, address, metrics_address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()

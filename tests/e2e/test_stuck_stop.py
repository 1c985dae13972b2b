"""A stop that cannot be finished: the step thread of a real server is held, as a device that hangs would hold it."""

import contextlib
import ctypes
import os
import pathlib
import signal
import threading

import pytest

import checkpoints
from ddl_client import RpcError
from server_process import Server

PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 0x4206, 0x4207
WAIT_ALL = 0x40000000  # __WALL: threads of another process too

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def busiest_thread(process):
    """The one that has used most processor time: with --threads=1, the one that steps."""
    def ticks(stat):
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])
    stats = pathlib.Path(f"/proc/{process}/task").glob("*/stat")
    return int(max(stats, key=ticks).parent.name)


def hold_in_a_step(server):
    """Stops the step thread while it steps, which the watchdog tells of."""
    thread = busiest_thread(server.process.pid)
    ptrace(PTRACE_SEIZE, thread)
    while True:
        ptrace(PTRACE_INTERRUPT, thread)
        os.waitpid(thread, WAIT_ALL)
        try:
            server.log.wait_for("stalled model=", timeout=5)
            return thread
        except AssertionError:  # it was between two steps
            ptrace(PTRACE_CONT, thread)


def test_a_stuck_step_does_not_hold_a_stop():
    stop = threading.Event()

    def call(client):
        with contextlib.suppress(RpcError):
            while not stop.is_set():
                client.generate([1, 2, 3], max_tokens=200, ignore_eos=True)

    # Leaving it wants the code 0 of a stop that ends.
    with pytest.raises(AssertionError, match="^exit code 1$"), Server(
            checkpoints.small(), "--step_timeout=1s", "--drain_timeout=200ms") as server:
        caller = threading.Thread(target=call, args=[server.client])
        caller.start()
        server.wait_for_metrics(lambda scrape: scrape.value("ddl_generated_tokens_total") > 1000)
        thread = hold_in_a_step(server)
        server.signal(signal.SIGTERM)
        os.waitpid(thread, WAIT_ALL)  # it ends with the process, which ends by itself
        server.wait()
        stop.set()
        caller.join()
    [line] = [line for line in server.log.text().splitlines() if line.startswith("ddl_server: ")]
    assert "the stop is stuck: a step of model=" in line

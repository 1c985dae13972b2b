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

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WAIT_ALL = 0x40000000  # __WALL: threads of another process too
ATTEMPTS = 10
CALLS = 20  # whose processor time shows which thread steps

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def ticks(process):
    """By thread, the processor time that it has used."""
    used = {}
    for stat in pathlib.Path(f"/proc/{process}/task").glob("*/stat"):
        fields = stat.read_text().rsplit(")", 1)[1].split()
        used[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
    return used


class Caller:
    """Calls one after the other, until the server goes."""

    def __init__(self, client):
        self._client = client
        self._answered = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self):
        with contextlib.suppress(RpcError):
            while True:
                self._client.generate([1, 2, 3], max_tokens=200, ignore_eos=True)
                self._answered.release()

    def await_answers(self, count):
        for _ in range(count):
            assert self._answered.acquire(timeout=60)

    def join(self):
        self._thread.join()


def hold_in_a_step(server, caller):
    """Stops the step thread, which is the busiest of a server that computes on one, while it steps; the watchdog tells."""
    for _ in range(ATTEMPTS):
        before = ticks(server.process.pid)
        caller.await_answers(CALLS)
        after = ticks(server.process.pid)
        thread = max(after, key=lambda thread: after[thread] - before.get(thread, 0))
        ptrace(PTRACE_SEIZE, thread)
        ptrace(PTRACE_INTERRUPT, thread)
        os.waitpid(thread, WAIT_ALL)
        try:
            server.log.wait_for("stalled model=", timeout=5)
            return thread
        except AssertionError:  # it was between two steps
            ptrace(PTRACE_DETACH, thread)
    raise AssertionError(f"no step was met in {ATTEMPTS} attempts")


def test_a_stuck_step_does_not_hold_a_stop():
    # Leaving it wants the code 0 of a stop that ends.
    with pytest.raises(AssertionError, match="^exit code 1$"), Server(
            checkpoints.small(), "--step_timeout=1s", "--drain_timeout=200ms") as server:
        caller = Caller(server.client)
        thread = hold_in_a_step(server, caller)
        server.signal(signal.SIGTERM)
        os.waitpid(thread, WAIT_ALL)  # it ends with the process, which ends by itself
        server.wait()
        caller.join()
    [line] = [line for line in server.log.text().splitlines() if line.startswith("ddl_server: ")]
    assert "the stop is stuck: a step of model=" in line

"""What the server may use of the machine, as it says at its start. Control groups are tests/base/process_limits_test.cc's."""

import os
import re

import checkpoints
from server_process import Server


def test_a_single_processor():
    """An affinity of one processor is all that there is; --threads=1 of the tests fits, two do not."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # of this thread, whose children inherit it
    try:
        with Server(checkpoints.small(), "--threads=2") as server:
            log = server.log.text()
    finally:
        os.sched_setaffinity(0, allowed)
    assert re.search(r"info limits processors=1 affinity=1 cpu_quota=\S+ memory_available=\d+MiB memory_limit=\S+$", log, re.MULTILINE), log
    assert re.search(r"warning --threads=2 is more than the 1 processors ", log), log
    assert re.search(r"info loaded .* threads=2 ", log), log

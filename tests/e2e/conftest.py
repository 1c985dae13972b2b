import pytest

import checkpoints
from server_process import Server


@pytest.fixture(scope="module")
def server():
    """One server on the small checkpoint, in float32, for all tests of a file."""
    with Server(checkpoints.small(), "--dtype=float32") as running:
        yield running
        assert running.wait_until_idle().busy() == {}


@pytest.fixture
def client(server):
    return server.client

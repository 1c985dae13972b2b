"""The log level of a server that runs, changed by signals."""

import signal
import socket

import checkpoints
from ddl_client import Client
from server_process import Log, Server, launch


def test_there_and_back():
    """SIGUSR1 shows debug lines, SIGUSR2 goes back; both say so, and the server serves on."""
    with Server(checkpoints.small()) as server:
        server.signal(signal.SIGUSR1)
        server.log.wait_for(r" log_level=debug$")
        assert server.client.generate([1, 2, 3], max_tokens=1).completions
        server.signal(signal.SIGUSR2)
        server.log.wait_for(r" log_level=info$")
        assert server.client.generate([1, 2, 3], max_tokens=1).completions
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "draining" in server.log.text()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_quiet_server_speaks_up():
    """With --log_level=error nothing is logged, until asked to, and nothing after it is quiet."""
    address = f"127.0.0.1:{free_port()}"  # there is no line in the log to read it from
    process = launch(f"--model={checkpoints.small()}", f"--grpc_address={address}", "--threads=1",
                     "--metrics_address=127.0.0.1:0", "--log_level=error")
    try:
        log = Log(process.stderr)
        with Client(address, timeout=60) as client:
            client.wait_until_serving(timeout=60)
        assert log.text() == ""
        process.send_signal(signal.SIGUSR1)
        log.wait_for(r" log_level=debug$")
        process.send_signal(signal.SIGUSR2)
        log.wait_for(r" log_level=error$")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        log.wait_for_end()
        assert log.text().count("\n") == 2, log.text()
    finally:
        process.kill()
        process.wait()

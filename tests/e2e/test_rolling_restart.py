"""One server after the other is drained and replaced, five times, under load: no call is lost.

Once with clients that balance calls themselves, as docs/operations.md says how to, and once
behind an HAProxy with deploy/haproxy/haproxy.cfg.
"""

import collections
import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import time

import grpc
import numpy

import checkpoints
from ddl_client import Client, vectors
from server_process import ROOT, Log, Server

HAPROXY = ROOT / ".venv" / "bin" / "haproxy"
HANDBOOK = ROOT / "docs" / "operations.md"

REPLACEMENTS = 5
STREAMS, EMBEDS = 6, 2  # threads, each with one call at a time
STREAM_TOKENS = 150
# Drains must be noticed while calls are still accepted.
DRAIN_DELAY = "--drain_delay=2s"


def service_config(*, behind_a_proxy):
    """What clients are told to configure."""
    [text] = re.findall(r"```json\n(.*?loadBalancingConfig.*?)```", HANDBOOK.read_text(), re.DOTALL)
    config = json.loads(text)
    if behind_a_proxy:
        del config["loadBalancingConfig"], config["healthCheckConfig"]
    return json.dumps(config)


def prompt(number):
    return [1 + (7 * number + i) % 300 for i in range(5 + number % 40)]


class Load:
    """Threads that call without a pause, until stopped, and compare every answer."""

    def __init__(self, target, config):
        self._channel = grpc.insecure_channel(target, [("grpc.service_config", config)])
        self._client = Client(channel=self._channel, timeout=60)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.calls = collections.Counter()
        self.failures = []
        self.longest_seconds = 0
        self._expected = {}  # answers by call; the first is the one that others must equal
        self._threads = [threading.Thread(target=self._repeat, args=[call, number])
                         for call, count in ((self._stream, STREAMS), (self._embed, EMBEDS))
                         for number in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def _repeat(self, call, number):
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                answer = call(number)
                with self._lock:
                    if answer != self._expected.setdefault((call.__name__, number), answer):
                        self.failures.append(f"{call.__name__}: another answer than before")
            except Exception as error:  # whatever it is, the test reports it
                with self._lock:
                    self.failures.append(f"{call.__name__}: {error!r}")
            with self._lock:
                self.calls[call.__name__] += 1
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)

    def _stream(self, number):
        stream = self._client.stream(prompt(number), max_tokens=STREAM_TOKENS, temperature=0,
                                     ignore_eos=True)
        tokens = [token.token_id for delta in stream for token in delta.tokens]
        assert len(tokens) == STREAM_TOKENS and stream.end is not None, "truncated"
        assert stream.end.usage.completion_tokens == STREAM_TOKENS
        return tuple(tokens)

    def _embed(self, number):
        [first, second] = vectors(self._client.embed([prompt(number), prompt(number + 100)]))
        return numpy.concatenate([first, second]).tobytes()


class Servers:
    """Two of them, on addresses that stay."""

    def __init__(self, stack):
        self._stack = stack
        self._running = [self._start(), self._start()]
        self.addresses = [(server.address, server.metrics_address) for server in self._running]

    def _start(self, *flags):
        return self._stack.enter_context(Server(checkpoints.small(), DRAIN_DELAY, *flags))

    def replace(self, which):
        """Until the new server is ready, and has got calls of the load."""
        old = self._running[which]
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        assert re.search(r"\bdrained\b", old.log.text()), old.log.text()
        grpc_address, metrics_address = self.addresses[which]
        self._running[which] = self._start(f"--grpc_address={grpc_address}",
                                           f"--metrics_address={metrics_address}")
        self.await_calls(which)

    def await_calls(self, which):
        """Of both kinds, answered since this server was started."""
        for method in ("GenerateStream", "Embed"):
            self._running[which].wait_for_metrics(
                lambda scrape, method=method: scrape.value("ddl_requests_total", method=method, code="OK") > 0)


@contextlib.contextmanager
def haproxy(folder, addresses):
    """The address of a proxy before these servers, configured as the example says."""
    text = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    examples = re.findall(r"^  server \w+ (\S+) proto h2 check-proto h1 port (\d+)$", text, re.MULTILINE)
    for (address, port), (ours, metrics) in zip(examples, addresses, strict=True):
        text = text.replace(f"{address} proto h2 check-proto h1 port {port}",
                            f"{ours} proto h2 check-proto h1 port {metrics.split(':')[1]}")
    path = folder / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        assert text.count("bind :8500 proto") == 1
        path.write_text(text.replace("bind :8500 proto", f"bind fd@{fd} proto"))
        process = subprocess.Popen([HAPROXY, "-db", "-f", path], stdin=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, pass_fds=[fd])
        try:
            log = Log(process.stderr)
            host, port = listener.getsockname()
            yield f"{host}:{port}"
            assert process.poll() is None, log.text()
        finally:
            process.kill()
            process.wait()
            log.wait_for_end()
            print(log.text())  # shown if the test fails


def report(name, load, seconds):
    print(f"{name}: {REPLACEMENTS} replacements in {seconds:.0f} s, {dict(load.calls)}, "
          f"{len(load.failures)} failures, longest call {load.longest_seconds:.2f} s")


def rehearse(name, servers, load):
    began = time.monotonic()
    for which in (0, 1):
        servers.await_calls(which)
    for time_of in range(REPLACEMENTS):
        servers.replace(time_of % 2)
    report(name, load, time.monotonic() - began)
    assert load.failures == []
    assert all(load.calls[call] > 20 * REPLACEMENTS for call in ("_stream", "_embed")), load.calls


def test_clients_that_balance():
    with contextlib.ExitStack() as stack:
        servers = Servers(stack)
        target = "ipv4:" + ",".join(grpc_address for grpc_address, _ in servers.addresses)
        with Load(target, service_config(behind_a_proxy=False)) as load:
            rehearse("round robin", servers, load)
        assert load.failures == []


def test_behind_haproxy(tmp_path):
    with contextlib.ExitStack() as stack:
        servers = Servers(stack)
        with (haproxy(tmp_path, servers.addresses) as address,
              Load(address, service_config(behind_a_proxy=True)) as load):
            rehearse("haproxy", servers, load)
        assert load.failures == []

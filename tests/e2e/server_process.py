"""A real server in a process of its own, for a test."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import scraping
from ddl_client import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DDL_BUILD_DIR", ROOT / "build" / "release"))
BINARY = BUILD / "bin" / "ddl_server"

# Bounds for what takes milliseconds on an idle machine: reached only when something hangs.
START_SECONDS = 120
STOP_SECONDS = 60


def environment(**variables):
    """What the server's process gets: settings of sanitizers, the instruction set that all tests
    are to be run by, if any, and `variables`."""
    kept = {name: value for name, value in os.environ.items()
            if name.endswith("SAN_OPTIONS") or name == "DDL_INSTRUCTION_SET"}
    return kept | variables


def launch(*arguments, cwd="/", **variables):
    """Starts the binary with these arguments, and an empty environment but for `variables`."""
    return subprocess.Popen(
        [str(BINARY), *map(str, arguments)], cwd=cwd, env=environment(**variables),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments, timeout=START_SECONDS, cwd="/", **variables):
    """Runs the binary to its end: (exit code, stdout, stderr)."""
    process = launch(*arguments, cwd=cwd, **variables)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{out}{err}") from None
    return process.returncode, out, err


class Log:
    """What a process writes to a pipe, line by line as it comes."""

    def __init__(self, pipe):
        self._lines = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=[pipe], daemon=True)
        self._thread.start()

    def _read(self, pipe):
        for line in pipe:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def text(self):
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern, timeout=START_SECONDS):
        """The match of `pattern` in a line; AssertionError once the process has ended without."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the process ended" if self._ended else f"waited {timeout} s"
                    raise AssertionError(f"no line '{pattern}' ({why}):\n" + "".join(self._lines))
                self._changed.wait(left)

    def wait_for_end(self):
        self._thread.join()


class Server:
    """Starts on free ports when entered; on leaving, gets SIGTERM and must end with code 0.

        with Server(folder, "--dtype=float32") as server:
            server.client.generate(...)

    Entering returns once health says SERVING, or at once after it listens with ready=False. One
    thread computes unless a flag says otherwise: several test programs run at the same time.
    """

    def __init__(self, model, *flags, ready=True, **variables):
        self._arguments = [f"--model={model}", "--grpc_address=127.0.0.1:0",
                           "--metrics_address=127.0.0.1:0", "--threads=1", *flags]
        self._variables = variables
        self._ready = ready
        self.process = None

    def __enter__(self):
        self.process = launch(*self._arguments, **self._variables)
        self.log = Log(self.process.stderr)
        try:
            match = self.log.wait_for(r"listening grpc_address=(\S+) metrics_address=([^\s\"]+)")
            self.address, self.metrics_address = match.groups()
            self.client = Client(self.address, timeout=START_SECONDS)
            if self._ready:
                self.log.wait_for(r"\bready\b")  # or fails with the log, if it ends before
                self.client.wait_until_serving(timeout=START_SECONDS)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(self, kind, error, traceback):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            self.wait()
        self.client.close()
        if self.process.returncode != 0 or error is not None:
            print(self.log.text())
        if error is None:
            assert self.process.returncode == 0, f"exit code {self.process.returncode}"

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=STOP_SECONDS):
        """The exit code, once the process has ended."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still running after {timeout} s:\n{self.log.text()}") from None
        self.log.wait_for_end()
        return self.process.returncode

    def scrape(self):
        return scraping.Scrape.of(self.metrics_address)

    def wait_until_idle(self, timeout=30):
        """The first scrape in which nothing runs, waits or holds blocks."""
        return self.wait_for_metrics(lambda scrape: scrape.busy() == {}, timeout)

    def wait_for_metrics(self, accept, timeout=30):
        """The first scrape that `accept` is true of."""
        deadline = time.monotonic() + timeout
        while True:
            scrape = self.scrape()
            if accept(scrape):
                return scrape
            assert time.monotonic() < deadline, f"after {timeout} s:\n{scrape.text}"


def kv_bytes_per_block(model):
    """What one block of the K/V cache takes, from a server with room for exactly so many."""
    with Server(model, "--kv_cache_memory=16MiB") as server:
        return int(16 * 2**20 // server.scrape().value("ddl_kv_blocks"))

"""Keys, rates and the log of calls, on a real server."""

import collections
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import grpc
import pytest

import checkpoints
from ddl_client import Client, RpcError
from server_process import Server, run

PROMPT = "open sesame"


def line(name, key, options=""):
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()} {options}\n"


class KeyFile:
    """Replaced as Kubernetes does it: by renaming."""

    def __init__(self, folder):
        self.path = folder / "keys"

    def write(self, *lines):
        new = self.path.with_suffix(".new")
        new.write_text("".join(lines))
        os.rename(new, self.path)


@pytest.fixture
def key_file(tmp_path):
    return KeyFile(tmp_path)


def code(call):
    try:
        call()
        return grpc.StatusCode.OK
    except RpcError as error:
        return error.code


def test_keys_are_rotated_under_load(key_file):
    """As docs/operations.md says to: no call fails, streams that run go on, and then the old key is nothing any more."""
    key_file.write(line("alice", "old"))
    keys = ["old"]
    stop = threading.Event()
    answers = collections.Counter()

    def call(number):
        while not stop.is_set():
            with Client(server.address, timeout=60, api_key=keys[-1]) as client:
                for _ in range(10):
                    if number % 2:
                        answers[code(lambda: client.generate(PROMPT, max_tokens=8))] += 1
                    else:
                        answers[code(lambda: list(client.stream(PROMPT, max_tokens=8)))] += 1

    def await_calls(count):
        seen, deadline = sum(answers.values()), time.monotonic() + 60
        while sum(answers.values()) < seen + count:
            assert time.monotonic() < deadline, answers

    def await_reload(result, count):
        server.wait_for_metrics(
            lambda scrape: scrape.value("ddl_api_keys_reloads_total", result=result) == count)

    with Server(checkpoints.small(), f"--api_keys_file={key_file.path}",
                "--api_keys_reload_interval=100ms") as server:
        threads = [threading.Thread(target=call, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            await_calls(100)
            key_file.write(line("alice", "old"), line("alice", "new"))
            await_reload("ok", 1)
            keys.append("new")
            await_calls(100)  # each client makes 10: the last with the old key is gone
            key_file.write("nonsense")
            await_reload("failed", 1)
            await_calls(20)
            key_file.write(line("alice", "new"))
            await_reload("ok", 2)
            await_calls(100)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert answers.keys() == {grpc.StatusCode.OK}, answers
        with Client(server.address, api_key="old", timeout=30) as client:
            assert code(client.list_models) == grpc.StatusCode.UNAUTHENTICATED
            assert client.health() == "SERVING"


def test_the_log_names_calls_and_tells_no_secret(key_file):
    key_file.write(line("alice", "the key of alice", "priority=high requests_per_minute=4"))
    with Server(checkpoints.small(), f"--api_keys_file={key_file.path}", "--log_format=json") as server:
        with Client(server.address, timeout=60, api_key="the key of alice") as client:
            client.generate(PROMPT, max_tokens=3, request_id="first", ignore_eos=True, priority="high")
            list(client.stream(PROMPT, max_tokens=3, request_id="second", ignore_eos=True))
            assert code(lambda: client.generate(PROMPT, model="sesame")) == grpc.StatusCode.NOT_FOUND
            assert code(lambda: client.generate(PROMPT, stop=["sesame"] * 65)) == (
                grpc.StatusCode.INVALID_ARGUMENT)
            assert code(lambda: client.generate(PROMPT)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        with Client(server.address, timeout=60, api_key="not the key of alice") as client:
            assert code(lambda: client.generate(PROMPT)) == grpc.StatusCode.UNAUTHENTICATED
    text = server.log.text()
    lines = [json.loads(each) for each in text.splitlines()]
    assert all(each.keys() >= {"time", "level", "message"} for each in lines)
    requests = [each for each in lines if each["message"] == "request"]
    assert [(each["code"], each.get("key"), each.get("completion_tokens"), each.get("reason"))
            for each in requests] == [
        ("OK", "alice", 3, None), ("OK", "alice", 3, None), ("NOT_FOUND", "alice", None, None),
        ("INVALID_ARGUMENT", "alice", None, None),
        ("RESOURCE_EXHAUSTED", "alice", None, "RATE_LIMITED"), ("UNAUTHENTICATED", None, None, None)]
    assert [each["request_id"] for each in requests[:2]] == ["first", "second"]
    assert len({each["request_id"] for each in requests}) == len(requests)
    for secret in ("the key of", "sesame", hashlib.sha256(b"the key of alice").hexdigest()[:8]):
        assert secret not in text


def test_the_command_line_client_takes_a_key(key_file):
    key_file.write(line("alice", "secret"))
    with Server(checkpoints.small(), f"--api_keys_file={key_file.path}") as server:
        for key, status in (("secret", 0), ("other", 1)):
            done = subprocess.run(
                [sys.executable, "-m", "ddl_client", "models", "--address", server.address],
                env={**os.environ, "DDL_API_KEY": key}, capture_output=True, text=True, timeout=60)
            assert done.returncode == status, done.stderr
            assert "secret" not in done.stdout + done.stderr


def test_a_bad_file_stops_the_start(tmp_path):
    path = tmp_path / "keys"
    path.write_text("alice secret\n")
    status, _, err = run(f"--model={checkpoints.small()}", "--grpc_address=127.0.0.1:0",
                         "--metrics_address=127.0.0.1:0", "--log_level=error",
                         f"--api_keys_file={path}")
    assert status == 2
    assert re.fullmatch(r"ddl_server: --api_keys_file: .*keys:1: 'alice' must be followed by sha256: .*\n", err)
    assert "secret" not in err

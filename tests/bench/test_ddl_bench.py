"""The load generator against a real server on the demo model."""

import json
import re
import signal
import subprocess
import time

import pytest

from server_process import BUILD, ROOT, Log, Server, environment

BENCH = BUILD / "bin" / "ddl_bench"
DEMO = ROOT / "models" / "ddl-demo"
# Reached only when something hangs.
RUN_SECONDS = 120


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--dtype=bfloat16") as running:
        yield running


def launch(*arguments):
    return subprocess.Popen([str(BENCH), *map(str, arguments)], env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*arguments):
    """(exit code, stdout, stderr)"""
    process = launch(*arguments)
    out, err = process.communicate(timeout=RUN_SECONDS)
    return process.returncode, out, err


def measure(server, tmp_path, *arguments):
    """The JSON of a run that must end well."""
    path = tmp_path / "result.json"
    code, out, err = run(f"--address={server.address}", f"--json={path}", *arguments)
    assert code == 0, out + err
    return json.loads(path.read_text())


class Growth:
    """What the server counts while the block runs."""

    def __init__(self, server):
        self._server = server

    def __enter__(self):
        self._before = self._server.wait_until_idle()
        return self

    def __exit__(self, *_):
        self._after = self._server.wait_until_idle()

    def of(self, name, **labels):
        return self._after.value(name, **labels) - self._before.value(name, **labels)


def check_counts(growth, rows):
    """The client's counts are the server's, token by token."""
    total = lambda key: sum(row[key] for row in rows)
    warmup = lambda key: sum(row["warmup"][key] for row in rows)
    assert total("failed") == warmup("failed") == growth.of("ddl_wasted_tokens_total") == 0
    prompts = growth.of("ddl_prompt_tokens_total")
    assert total("total_input_tokens") + warmup("input_tokens") == prompts
    generated = growth.of("ddl_generated_tokens_total")
    assert total("total_output_tokens") + warmup("output_tokens") == generated
    inputs = growth.of("ddl_embed_inputs_per_request_sum")
    assert total("embed_inputs") + warmup("embed_inputs") == inputs


def check_row(row):
    """Keys and what must hold between them, whatever was measured."""
    kinds = ("completed_streams", "completed_unary", "completed_embeds")
    assert row["completed"] == sum(row[kind] for kind in kinds)
    assert row["ttft_samples"] == row["completed_streams"]
    assert row["e2el_samples"] == row["completed_streams"] + row["completed_unary"]
    assert row["embed_samples"] == row["completed_embeds"]
    assert row["total_input_tokens"] == row["generate_input_tokens"] + row["embed_input_tokens"]
    seconds = row["duration"]
    assert row["request_throughput"] == pytest.approx(row["completed"] / seconds)
    assert row["output_throughput"] == pytest.approx(row["total_output_tokens"] / seconds)
    assert row["total_token_throughput"] == pytest.approx(
        (row["total_input_tokens"] + row["total_output_tokens"]) / seconds)
    for name in ("ttft", "tpot", "itl", "e2el", "embed"):
        values = [row[f"{at}_{name}_ms"] for at in ("median", "p90", "p99", "max")]
        if row[f"{name}_samples"] == 0:
            assert values == [None] * 4
        else:
            assert 0 < values[0] <= values[1] <= values[2] <= values[3] <= 1e3 * seconds, name


def test_closed_loop_counts_what_the_server_counts(server, tmp_path):
    with Growth(server) as growth:
        result = measure(server, tmp_path, "--concurrency=1,4", "--requests=20", "--seed=1",
                         "--warmup_requests=3", "--prompt_tokens=3..40", "--output_tokens=2..12",
                         "--unary_share=0.4", "--embed_share=0.3", "--inputs_per_embed=3")
    rows = result["rows"]
    assert [row["load"] for row in rows] == ["concurrency 1", "concurrency 4"]
    assert [row["completed"] for row in rows] == [20, 20]
    assert all(row["completed_streams"] and row["completed_unary"] and row["completed_embeds"]
               for row in rows)
    for row in rows:
        check_row(row)
        assert row["embed_inputs"] == 3 * row["completed_embeds"]
    check_counts(growth, rows)
    assert growth.of("ddl_requests_total", code="OK") == 2 * (20 + 3) + 2  # and what it asks first
    for method, kind in (("GenerateStream", "streams"), ("Generate", "unary"), ("Embed", "embeds")):
        counted = growth.of("ddl_requests_total", method=method, code="OK")
        assert 0 <= counted - sum(row[f"completed_{kind}"] for row in rows) <= 2 * 3
    assert result["model"]["variant"] == "ccec" and result["server"]["git_commit"]
    assert result["settings"]["prompt_tokens"] == "3..40"


def test_lengths_are_exact(server, tmp_path):
    lengths = tmp_path / "lengths"
    lengths.write_text("7\n7\n")
    with Growth(server) as growth:
        [row] = measure(server, tmp_path, "--concurrency=2", "--requests=6", "--warmup_requests=0",
                        f"--prompt_tokens=@{lengths}", "--output_tokens=5", "--seed=2",
                        "--connections=2")["rows"]
    assert (row["total_input_tokens"], row["total_output_tokens"]) == (6 * 7, 6 * 5)
    # One token a message, so each stream has four gaps, and they add up.
    assert row["itl_samples"] == 6 * 4
    assert row["mean_itl_ms"] == pytest.approx(row["mean_tpot_ms"])
    check_counts(growth, [row])


def test_a_seed_repeats_the_requests(server, tmp_path):
    def totals(seed):
        [row] = measure(server, tmp_path, "--concurrency=3", "--requests=10", "--output_tokens=1..9",
                        "--prompt_tokens=2..50", f"--seed={seed}", "--warmup_requests=0")["rows"]
        return row["total_input_tokens"], row["total_output_tokens"]

    assert totals(3) == totals(3) != totals(4)


def test_open_loop(server, tmp_path):
    with Growth(server) as growth:
        [row] = measure(server, tmp_path, "--rate=60", "--duration=1s", "--prompt_tokens=8",
                        "--output_tokens=2", "--seed=5")["rows"]
    assert row["load"] == "rate 60/s"
    assert 20 <= row["completed"] <= 110  # Poisson of 60, five standard deviations and more
    check_row(row)
    check_counts(growth, [row])


def test_arrivals_follow_the_rate(server, tmp_path):
    """The last of 50 arrivals is at 50 / rate, give or take what Poisson allows."""
    def seconds(rate, seed):
        [row] = measure(server, tmp_path, f"--rate={rate}", "--requests=50", "--prompt_tokens=1",
                        "--output_tokens=1", f"--seed={seed}", "--warmup_requests=0")["rows"]
        assert row["completed"] == 50
        return row["duration"]

    assert seconds(1e6, 1) < 0.5 * seconds(50, 1)
    assert 0.4 < seconds(50, 2)  # four standard deviations below 1 s; a busy machine takes longer


def test_open_loop_latency_counts_from_the_arrival(server, tmp_path):
    """A client that stands still sends late. What arrived meanwhile has waited all the same."""
    path = tmp_path / "result.json"
    process = launch(f"--address={server.address}", f"--json={path}", "--rate=40", "--duration=2s",
                     "--prompt_tokens=4", "--output_tokens=1", "--warmup_requests=0", "--seed=6")
    errors = Log(process.stderr)
    errors.wait_for(r"rate 40/s: 1 s")
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.7)  # the length of the standstill, not a wait for something
    process.send_signal(signal.SIGCONT)
    assert process.wait(RUN_SECONDS) == 0, errors.text()
    [row] = json.loads(path.read_text())["rows"]
    assert row["largest_dispatch_lag_ms"] > 500
    assert row["max_ttft_ms"] > 500
    # About 28 arrivals, each late by 350 ms on average; half of that is asked for.
    assert row["mean_ttft_ms"] * row["completed"] > 28 * 350 / 2


BAD_FLAGS = {
    "typo": (["--concurency=3"], r"unknown flag --concurency; did you mean --concurrency\?"),
    "both loops": (["--concurrency=3", "--rate=2"], r"--concurrency .* and --rate .* exclude"),
    "no concurrency": (["--concurrency=0"], r"--concurrency=0: must be a number in 1"),
    "list with a hole": (["--concurrency=1,,8"], r"--concurrency=1,,8: must be"),
    "rate": (["--rate=fast"], r"--rate=fast: must be requests a second"),
    "negative rate": (["--rate=-1"], r"--rate=-1: must be requests a second"),
    "infinite rate": (["--rate=inf"], r"--rate=inf: must be requests a second"),
    "share": (["--embed_share=1.5"], r"--embed_share=1\.5: must be 0\.\.\.1"),
    "lengths": (["--prompt_tokens=9..3"], r"--prompt_tokens=9\.\.3: .* not '9\.\.3'"),
    "duration": (["--duration=soon"], r"soon.*duration"),
    "negative duration": (["--duration=-1s"], r"--duration=-1s: must be"),
    "requests": (["--requests=-1"], r"--requests=-1: must be at least 0"),
    "file": (["--json=/nowhere/result.json"], r"--json=/nowhere/result\.json: cannot be written"),
    "no flag": (["bench"], r"unexpected argument 'bench'"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag(name):
    arguments, pattern = BAD_FLAGS[name]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"ddl_bench: .+\n", err), err
    assert re.search(pattern, err), err


def test_more_tokens_than_the_context(server):
    code, _, err = run(f"--address={server.address}", "--prompt_tokens=1000")
    assert code == 2
    assert re.fullmatch(r"ddl_bench: .* up to 1128 tokens: the context of model 'ddl-demo' is 1024\n",
                        err)


def test_no_server():
    code, out, err = run("--address=127.0.0.1:1", "--connect_timeout=200ms")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"ddl_bench: no server at 127\.0\.0\.1:1 within 200ms\n", err)


def test_unknown_model(server):
    code, out, err = run(f"--address={server.address}", "--model=nobody")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"ddl_bench: .*GetModelInfo: .*nobody.*\n", err)


def test_failures_are_counted_by_code(server, tmp_path):
    path = tmp_path / "result.json"
    code, out, err = run(f"--address={server.address}", f"--json={path}", "--requests=5",
                         "--concurrency=2", "--output_tokens=500", "--timeout=5ms",
                         "--warmup_requests=0")
    assert code == 1
    assert "5 failed with DEADLINE_EXCEEDED" in out
    assert "no request was answered" in err
    [row] = json.loads(path.read_text())["rows"]
    assert (row["completed"], row["failed"]) == (0, 5)
    assert row["failures_by_code"] == {"DEADLINE_EXCEEDED": 5}
    server.wait_until_idle()


def test_interrupt_prints_what_there_is(server, tmp_path):
    path = tmp_path / "result.json"
    process = launch(f"--address={server.address}", f"--json={path}", "--concurrency=2,9",
                     "--duration=1000s", "--output_tokens=3", "--prompt_tokens=5")
    errors = Log(process.stderr)
    errors.wait_for(r"concurrency 2: 1 s, [1-9]\d* answered")
    process.send_signal(signal.SIGINT)
    out, _ = process.stdout.read(), process.wait(RUN_SECONDS)
    assert process.returncode == 130, errors.text()
    assert re.search(r"^concurrency 2 +[1-9]", out, re.MULTILINE), out
    assert "concurrency 9" not in out
    assert "stopped" in out
    [row] = json.loads(path.read_text())["rows"]
    assert row["stopped"] and row["completed"] > 0 and row["failed"] == 0
    server.wait_until_idle()  # and what was in flight is cancelled, not left behind


def test_a_server_that_dies(tmp_path):
    path = tmp_path / "result.json"
    golden = ROOT / "tests" / "data" / "goldens" / "ccec_base"
    with Server(golden) as server:
        process = launch(f"--address={server.address}", f"--json={path}", "--concurrency=2",
                         "--duration=1000s", "--output_tokens=3", "--prompt_tokens=5")
        errors = Log(process.stderr)
        errors.wait_for(r"concurrency 2: 1 s, [1-9]\d* answered")
        server.process.kill()
        server.process.wait()
        out = process.stdout.read()
        assert process.wait(RUN_SECONDS) == 1
        server.process.returncode = 0  # it was killed on purpose
    errors.wait_for(r"^ddl_bench: the server at \S+ no longer answers")
    assert re.search(r"failed with UNAVAILABLE", out), out
    [row] = json.loads(path.read_text())["rows"]
    assert row["completed"] > 0 and row["server_unreachable"]


def test_help():
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert "\nLoad:\n  --concurrency" in out and "vllm bench serve" in out

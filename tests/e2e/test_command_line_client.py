"""python -m ddl_client, as a person runs it."""

import json
import math
import subprocess
import sys

import pytest

import checkpoints
from ddl_client import Client, RpcError, demo


def run(*arguments, text_input=""):
    # Bytes: as text a "\r" of a completion would be read as "\n".
    done = subprocess.run([sys.executable, "-m", "ddl_client", *arguments], input=text_input.encode(),
                          capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def ask(server):
    return lambda command, *arguments, **options: run(
        command, "--address", server.address, *arguments, **options)


@pytest.mark.parametrize("how", [[], ["--no-stream"]], ids=["stream", "unary"])
def test_generate(ask, client, how):
    code, out, err = ask("generate", "The quick", "--max-tokens", "12", "--seed", "4", *how)
    response = client.generate("The quick", max_tokens=12, seed=4)
    assert (code, out) == (0, response.completions[0].text + "\n")
    assert "2 prompt + 12 completion tokens" in err.replace(
        str(response.usage.prompt_tokens) + " prompt", "2 prompt")
    assert "ended by length, seed 4]" in err


def test_generate_reads_stdin(ask):
    arguments = ["--max-tokens", "5", "--temperature", "0"]
    from_stdin = ask("generate", "-", *arguments, text_input="The fox")
    assert from_stdin[:2] == ask("generate", "The fox", *arguments)[:2]


def test_generate_with_stop(ask, client):
    text = client.generate("The", max_tokens=40, seed=2).completions[0].text
    stop = next(letter for letter in text if letter.isascii() and letter.isprintable())
    code, out, err = ask("generate", "The", "--max-tokens", "40", "--seed", "2", "--stop", stop)
    assert (code, out) == (0, text[:text.index(stop)] + "\n")
    assert "ended by stop" in err


def test_generate_several_with_echo(ask, client):
    code, out, _ = ask("generate", "The quick", "--max-tokens", "12", "--seed", "4", "--n", "2",
                       "--echo")
    response = client.generate("The quick", max_tokens=12, seed=4, n=2, echo=True)
    assert (code, out) == (0, "\n\n".join(each.text for each in response.completions) + "\n")


def test_score(ask, client):
    code, out, _ = ask("score", "The fox", "dog", "--tokens")
    scores = client.score(["The fox", "dog"]).scores
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"{scores[0].mean_nll:8.4f}  The fox"
    assert len(lines) == 2 + sum(len(score.tokens) for score in scores)


def test_embed_of_a_state(ask):
    code, out, _ = ask("embed", "one text", "--readout", "channel", "--channel", "1", "--layer", "0",
                       "--pooling", "weighted_mean")
    assert code == 0 and len(json.loads(out)) == 64


def test_embed(ask):
    code, out, _ = ask("embed", "one text", "another", "--pooling", "mean")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows)) == (0, 2)
    assert all(math.isclose(sum(x * x for x in row), 1, rel_tol=1e-4) for row in rows)
    code, out, _ = ask("embed", "one text", "another", "--similarity")
    assert code == 0 and out.count("1.000") == 2


def test_tokenize(ask):
    code, out, _ = ask("tokenize", "The fox")
    ids = [int(line.split()[0]) for line in out.splitlines()]
    assert (code, ids) == (0, checkpoints.small_tokenizer().encode("The fox").ids)


def test_models_and_health(ask, client):
    code, out, _ = ask("models")
    assert code == 0 and out.startswith(f"{client.model_info().name}: ready, ccec, 2 layers")
    assert ask("health") == (0, "SERVING\n", "")
    code, _, err = ask("health", "nothing")
    assert code == 1 and err.startswith("ddl_client: NOT_FOUND")


def test_demo(ask, server):
    code, out, err = ask("demo", "--metrics", server.metrics_address)
    assert (code, err) == (0, ""), out
    assert out.count("|") >= 2
    assert f"({len(demo.SENTENCES)})" in out
    shown = [line for line in out.splitlines() if line.startswith("ddl_")]
    assert 6 <= len(shown) <= 10, out
    assert any(line.startswith("ddl_generated_tokens_total") for line in shown), out
    assert len(out.splitlines()) <= 29, out  # scripts/demo.sh prints 11 around it: 40 in all


@pytest.mark.parametrize("arguments,expected", [
    (["generate", "x", "--model", "nobody"], "ddl_client: NOT_FOUND"),
    (["generate", "x", "--temperature", "9"], "sampling.temperature: must be 0...2"),
    (["embed", "x", "--dimensions", "1000"], "params.dimensions: must be 1...64"),
    (["generate", "x", "--max-tokens", "400", "--timeout", "0.001"], "DEADLINE_EXCEEDED"),
    (["demo", "--metrics", "127.0.0.1:1"], "cannot read the metrics at 127.0.0.1:1"),
], ids=lambda value: value if isinstance(value, str) else None)
def test_failures(ask, arguments, expected):
    code, _, err = ask(*arguments)
    assert code == 1
    assert expected in err and "Traceback" not in err


@pytest.mark.parametrize("command", [["generate", "x"], ["embed", "x"], ["health"], ["demo"]],
                         ids=lambda command: command[0])
def test_no_server(command):
    code, out, err = run(*command, "--address", "127.0.0.1:1", "--timeout", "60")
    assert code == 1
    assert err.startswith("ddl_client: no server answers at 127.0.0.1:1"), err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [
    [], ["dance"], ["generate"], ["generate", "x", "--max-tokens", "many"],
    ["embed", "x", "--similarity", "--pooling", "none"]], ids=str)
def test_mistakes_in_the_command_line(arguments):
    code, _, err = run(*arguments)
    assert code == 2 and "usage:" in err


def test_errors_carry_their_details(server):
    with Client(server.address) as client, pytest.raises(RpcError) as caught:
        client.generate("x", top_p=3)
    [(field, description)] = caught.value.violations
    assert field == "sampling.top_p" and "3" in description
    assert str(caught.value).startswith("INVALID_ARGUMENT: ")
    assert (caught.value.reason, caught.value.retry_seconds) == (None, None)

"""Starts that cannot be: one clear message, the right exit code, never a crash."""

import json
import re
import shutil
import signal

import pytest

import checkpoints
from server_process import ROOT, Server, run

GOOD = ROOT / "tests" / "data" / "goldens" / "ccec_base"
BAD_SETTING = 2
CANNOT_LISTEN = 1


def start(*arguments, **variables):
    """Starts a server that must fail: its exit code, and what it wrote to stderr."""
    addresses = ["--grpc_address=127.0.0.1:0", "--metrics_address=127.0.0.1:0"]
    code, _, err = run("--log_level=error", *addresses, *arguments, **variables)
    return code, err


def check_same_failure(found, *arguments, **variables):
    """--check says and exits what the start does."""
    assert start("--check", *arguments, **variables) == found


def check_message(found, expected_code, pattern, lines=1):
    """One message: the lines after its first, a list of tensors or keys, are indented."""
    code, err = found
    assert re.fullmatch(r"ddl_server: .+\n(  .+\n)*", err), f"not one message:\n{err}"
    assert err.count("\n") <= lines, err
    assert re.search(pattern, err, re.DOTALL), err
    assert code == expected_code, err


FLAGS = {
    "no model": ([], r"--model is required"),
    "empty model": (["--model="], r"--model is required"),
    "a second model that is none": ([f"--model=a={GOOD},b=/nowhere"], r"/nowhere"),
    "a name twice": ([f"--model=a={GOOD},a={GOOD}"], r"two models are called 'a'"),
    "name without a folder": (["--model=a="], r"without a folder"),
    "unknown flag": ([f"--model={GOOD}", "--grpc_adress=127.0.0.1:1"],
                     r"unknown flag --grpc_adress; did you mean --grpc_address"),
    "flag without a value": ([f"--model={GOOD}", "--dtype"], r"--dtype lacks a value"),
    "no flag": ([f"--model={GOOD}", "serve"], r"unexpected argument 'serve'"),
    "dtype": ([f"--model={GOOD}", "--dtype=float64"], r"float64.*auto, float32, bfloat16"),
    "device": ([f"--model={GOOD}", "--device=tpu"], r"tpu.*auto, cpu, cuda"),
    "fraction of the GPU's memory": ([f"--model={GOOD}", "--gpu_memory_fraction=2"],
                                     r"--gpu_memory_fraction=2: must be more than 0 and at most 1"),
    "number": ([f"--model={GOOD}", "--threads=many"], r"many.*threads"),
    "negative number": ([f"--model={GOOD}", "--threads=-1"], r"--threads=-1: must be 0\.\.\.1024"),
    "duration": ([f"--model={GOOD}", "--drain_timeout=soon"], r"soon.*drain_timeout"),
    "negative duration": ([f"--model={GOOD}", "--drain_delay=-1s"], r"drain_delay=-1s: must be"),
    "address without a port": ([f"--model={GOOD}", "--metrics_address=localhost"],
                               r"--metrics_address=localhost: must be HOST:PORT"),
    "port": ([f"--model={GOOD}", "--grpc_address=127.0.0.1:70000"], r"127\.0\.0\.1:70000"),
    "step smaller than the batch": ([f"--model={GOOD}", "--max_step_tokens=8"],
                                    r"--max_step_tokens=8 is less than --max_running_sequences=64"),
    "context of one": ([f"--model={GOOD}", "--max_context_length=1"], r"at least 2"),
    "cache without a block": ([f"--model={GOOD}", "--kv_cache_memory=1KiB"], r"--kv_cache_memory"),
    "no flagfile": (["--flagfile=/nowhere/flags"], r"/nowhere/flags"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name):
    arguments, pattern = FLAGS[name]
    found = start(*arguments)
    check_message(found, BAD_SETTING, pattern)
    check_same_failure(found, *arguments)


def test_no_gpu():
    """Whether the program was built with CUDA or not, and where there is a GPU it is hidden."""
    check_message(start(f"--model={GOOD}", "--device=cuda", CUDA_VISIBLE_DEVICES=""), BAD_SETTING,
                  r"--device=cuda: this (program was built without CUDA|machine has no GPU)")


SETS = ["portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"]


@pytest.mark.parametrize("name", SETS)
def test_instruction_set(name):
    """Each one works and shows, or the start says in one line why not and what there is."""
    code, out, err = run("--log_level=error", f"--model={GOOD}", f"--instruction_set={name}", "--check")
    if code == 0:
        assert f" instruction_set={name} " in out
    else:
        assert name not in ("portable", "amx_emulated")
        check_message((code, err), BAD_SETTING,
                      rf"--instruction_set={name}: the (processor lacks|operating system refuses) .*; here are portable")


def test_environment():
    check_message(start(f"--model={GOOD}", DDL_DTYPE="float8"), BAD_SETTING, r"DDL_DTYPE.*float8")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def cut(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])


CHECKPOINTS = {
    "no such folder": (shutil.rmtree, r"no such|not exist|not found|cannot"),
    "empty folder": (lambda f: [path.unlink() for path in f.iterdir()], r"config\.json"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors"),
    "config cut off": (lambda f: cut(f / "config.json", 100), r"config\.json"),
    "config of another type": (lambda f: (f / "config.json").write_text("[1]"), r"config\.json"),
    "quoted boolean": (lambda f: edit_config(f, use_k_shift="true"), r"use_k_shift"),
    "unknown activation": (lambda f: edit_config(f, q_activation="gelu"), r"q_activation.*gelu"),
    "impossible kernel": (lambda f: edit_config(f, ddl_state_shortconv_kernel_size=-1),
                          r"ddl_state_shortconv_kernel_size"),
    "more layers than tensors": (lambda f: edit_config(f, num_hidden_layers=4),
                                 r"model\.safetensors.*config\.json says 4, found 3 layers"),
    "larger vocabulary than tensor": (lambda f: edit_config(f, vocab_size=300),
                                      r"wte\.weight: found \(256, 32\), expected \(300, 32\)"),
    "header cut off": (lambda f: cut(f / "model.safetensors", 1000), r"model\.safetensors"),
    "tensors cut off": (lambda f: cut(f / "model.safetensors", 150000), r"model\.safetensors"),
    "no safetensors at all": (lambda f: (f / "model.safetensors").write_bytes(b"PK\3\4" * 99),
                              r"model\.safetensors"),
    "tokenizer cut off": (lambda f: (f / "tokenizer.json").write_text(
        checkpoints.trained_tokenizer()[:3000]), r"tokenizer\.json"),
    "tokenizer larger than the model": (lambda f: (f / "tokenizer.json").write_text(
        checkpoints.trained_tokenizer()), r"tokenizer.*360.*vocab_size.*256"),
    "vocabulary without merges": (lambda f: (f / "vocab.json").write_text("{}"), r"merges\.txt"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, tmp_path):
    spoil, pattern = CHECKPOINTS[name]
    folder = tmp_path / "model"
    folder.mkdir()
    for path in ("config.json", "model.safetensors"):
        shutil.copyfile(GOOD / path, folder / path)
    spoil(folder)
    found = start(f"--model={folder}")
    check_message(found, BAD_SETTING, pattern, lines=100)
    assert str(folder) in found[1]
    check_same_failure(found, f"--model={folder}")
    if name in ("tokenizer cut off", "tokenizer larger than the model", "vocabulary without merges"):
        assert found[1].rstrip().endswith("start with --tokenizer=none")
        code, out, err = run(f"--model={folder}", "--tokenizer=none", "--check", "--log_level=error")
        assert (code, err) == (0, "") and " tokenizer=none " in out


def test_a_file_in_place_of_the_folder():
    path = GOOD / "config.json"
    check_message(start(f"--model={path}"), BAD_SETTING, re.escape(str(path)))


@pytest.mark.parametrize("flag", ["grpc_address", "metrics_address"])
def test_port_in_use(flag):
    with Server(GOOD) as server:
        taken = {"grpc_address": server.address, "metrics_address": server.metrics_address}[flag]
        found = start(f"--model={GOOD}", f"--{flag}={taken}")
        check_message(found, CANNOT_LISTEN, f"--{flag}={taken}")
        assert server.client.health() == "SERVING"


def test_check():
    """A line for each model; the ports of a server that runs are left alone."""
    with Server(GOOD) as server:
        code, out, err = run("--check", f"--model=a={GOOD},b={checkpoints.small()}",
                             f"--grpc_address={server.address}", "--log_level=error",
                             f"--metrics_address={server.metrics_address}")
        assert (code, err) == (0, "")
        info = server.client.model_info()
    first, second = out.splitlines()
    assert re.fullmatch(r"ok model=a variant=ccec revision=2b55f25 dtype=float32 device=cpu instruction_set=\w+ parameters=\d+ context="
                        r"\d+ kv_cache_tokens=\d+ tokenizer=none weights_sha256=[0-9a-f]{64}", first)
    said = dict(word.split("=") for word in first.split()[1:])
    assert said["weights_sha256"] == info.weights_sha256
    assert int(said["parameters"]) == info.parameter_count
    assert second.startswith("ok model=b ") and "context=512" in second
    assert "tokenizer=yes" in second


def test_help():
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert re.search(r"^Model:\n  --model", out, re.MULTILINE)
    for group in ("Addresses:", "Engine:", "Operation:"):
        assert f"\n{group}\n" in out


def test_help_works_beside_a_mistake():
    assert run("--grpc_adress=1", "--help")[0] == 0


def test_version():
    code, out, _ = run("--version")
    assert code == 0 and re.fullmatch(r"ddl_server \d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_during_load(number):
    """124 M parameters take a moment to load: the signal comes in the middle of it."""
    with Server(checkpoints.paper_small(), ready=False) as server:
        server.log.wait_for("loading model=")
        server.signal(number)
        assert server.wait() == 0
        assert "ready model=" not in server.log.text()


def test_interrupt():
    with Server(GOOD) as server:
        server.signal(signal.SIGINT)
        assert server.wait() == 0


def test_settings_from_flagfile_and_environment(tmp_path):
    """The command line wins over a flag file that stands before it, and both over DDL_*."""
    flagfile = tmp_path / "flags"
    flagfile.write_text("# settings\n--dtype=bfloat16\n--max_context_length=40\n")
    with Server(f"named={GOOD}", f"--flagfile={flagfile}", "--dtype=float32",
                DDL_MAX_CONTEXT_LENGTH="30", DDL_MAX_RUNNING_SEQUENCES="5") as server:
        model = server.client.model_info("named")
        assert (model.dtype, model.max_context_length) == ("float32", 40)
        assert server.client.server_info().max_running == 5

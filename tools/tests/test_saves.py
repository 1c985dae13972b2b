"""What people's training runs leave on their disks, each as a test: the server serves it with the official code's numbers, or
refuses it with a message whose last line is a command after which it does.

The server's own reader and model compute the logits (tests/model/logits_driver.cc, built by `make build` into
build/release/tests; DDL_LOGITS_DRIVER names another).
"""
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="making saves needs PyTorch (tools/requirements.txt)")
from safetensors.torch import load_file, save_file

from conftest import ROOT

DRIVER = pathlib.Path(os.environ.get("DDL_LOGITS_DRIVER", ROOT / "build/release/tests/logits_driver"))
DATA = ROOT / "tests" / "data"
CLOSE = 1e-4  # of float32 logits, as for the goldens


def golden(name):
    return next(DATA.glob(f"goldens*/{name}"))


def weights(name):
    folder = golden(name)
    return {k: v for path in sorted(folder.glob("model*.safetensors")) for k, v in load_file(path).items()}


def config(name):
    return json.loads((golden(name) / "config.json").read_text())


def write_config(folder, name, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(name) | changes))


def save(folder, name, tensors, **changes):
    """A folder with model.safetensors."""
    write_config(folder, name, **changes)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def pickle(folder, name, value, file="pytorch_model.bin", **options):
    write_config(folder, name)
    torch.save(value, folder / file, **options)


def prefixed(prefix, tensors):
    return {prefix + k: v for k, v in tensors.items()}


def with_head(tensors, factor=1.0):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"] * factor}


def only_head(tensors):
    return {("lm_head.weight" if k == "transformer.wte.weight" else k): v for k, v in tensors.items()}


def tied(tensors):
    """Both names on one storage, as a module's state_dict() has them."""
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}


def shards(folder, name, tensors, writer, ending, in_index=()):
    write_config(folder, name)
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    for i in range(2):
        file = f"{'model' if ending == 'safetensors' else 'pytorch_model'}-0000{i + 1}-of-00002.{ending}"
        part = {k: v for n, (k, v) in enumerate(sorted(tensors.items())) if n % 2 == i}
        writer(part, folder / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    for key in in_index:
        index["weight_map"][key] = file
    base = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    (folder / f"{base}.index.json").write_text(json.dumps(index))


def hub_snapshot(folder, name):
    """As the Hugging Face cache keeps it: links into a folder of blobs."""
    blobs = folder.parent / "blobs"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(sorted(golden(name).iterdir())):
        shutil.copyfile(path, blobs / str(i))
        (folder / path.name).symlink_to(f"../blobs/{i}")


def nan_config(folder, name):
    save(folder, name, weights(name))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"best_loss": NaN, "limits": [Infinity, -Infinity], ', 1)
                                        .replace('"embedding_init_std": 0.02', '"embedding_init_std": NaN'))


def nano_gpt(name, **more):
    """What nanoGPT's training loop saves."""
    model = collections.OrderedDict(prefixed("_orig_mod.", tied(weights(name))))
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer.state_dict(), "model_args": config(name), "iter_num": 100,
            "best_val_loss": torch.tensor(2.5), "config": {"learning_rate": 1e-3, "device": "cuda"}} | more


def inside(tensors):
    """torch.compile of each block."""
    return {k.replace("transformer.h.0.", "transformer.h.0._orig_mod."): v for k, v in tensors.items()}


V2, V1 = "v2_ccec_base", "ccec_base"
SERVED, CONVERTED = "served", "converted"
# name: golden, served or converted, and what makes the save in a folder that does not exist.
SAVES = {
    # ---- whole folders
    "today's save_pretrained": (V2, SERVED, lambda f: shutil.copytree(golden(V2), f)),
    "with max_shard_size": ("v2_asis_ccec_sharded", SERVED, lambda f: shutil.copytree(golden("v2_asis_ccec_sharded"), f)),
    "after model.to(bfloat16)": ("v2_asis_tcec_bf16", SERVED, lambda f: shutil.copytree(golden("v2_asis_tcec_bf16"), f)),
    "attention in bfloat16 beside float32": ("v2_asis_gpt_attention_bf16", SERVED,
                                             lambda f: shutil.copytree(golden("v2_asis_gpt_attention_bf16"), f)),
    "with completeP": ("v2_ccec_completep", SERVED, lambda f: shutil.copytree(golden("v2_ccec_completep"), f)),
    "2b55f25 in safetensors": (V1, SERVED, lambda f: shutil.copytree(golden(V1), f)),
    "2b55f25 as its save_pretrained wrote it": (V1, SERVED, lambda f: pickle(f, V1, tied(weights(V1)))),
    "before February 2026": ("legacy_tcec", SERVED, lambda f: shutil.copytree(golden("legacy_tcec"), f)),
    "the Hugging Face cache's links": (V2, SERVED, lambda f: hub_snapshot(f, V2)),
    "a path with separators": (V2, SERVED, lambda f: shutil.copytree(golden(V2), f)),  # the folder's name has them all
    # ---- tied weights
    "both names, two copies": (V2, SERVED, lambda f: save(f, V2, with_head(weights(V2)))),
    "save_model keeps lm_head alone": (V2, SERVED, lambda f: save(f, V2, only_head(weights(V2)))),
    "convert_file of 2b55f25 keeps lm_head alone": (V1, SERVED, lambda f: save(f, V1, only_head(weights(V1)))),
    "an index names a head that no shard holds": (V2, SERVED, lambda f: shards(f, V2, weights(V2), save_file, "safetensors",
                                                                              ["lm_head.weight"])),
    "an index names an embedding that no shard holds": (V2, SERVED, lambda f: shards(
        f, V2, only_head(weights(V2)), save_file, "safetensors", ["transformer.wte.weight"])),
    "shards of pytorch_model.bin": (V1, SERVED, lambda f: shards(f, V1, weights(V1), torch.save, "bin")),
    "2b55f25 with another head, which it ties": (V1, SERVED, lambda f: save(f, V1, with_head(weights(V1), 3.0))),
    # ---- the configuration
    "a subclass of the official class": (V2, SERVED, lambda f: save(f, V2, weights(V2), architectures=["MyGPT"],
                                                                   model_type="my-gpt", auto_map={"AutoModel": "m.MyGPT"})),
    "the first week's model_type": ("legacy_ccec_k3", SERVED, lambda f: save(f, "legacy_ccec_k3", weights("legacy_ccec_k3"),
                                                                            model_type="nanogpt")),
    "NaN and Infinity where nobody reads": (V2, SERVED, lambda f: nan_config(f, V2)),
    "ddl_k_eps of 0": (V2, SERVED, lambda f: save(f, V2, weights(V2), ddl_k_eps=0)),
    "a number in quotes": (V2, SERVED, lambda f: save(f, V2, weights(V2), rope_ratio="1.0", ddl_k_eps="1e-5")),
    "config of tied weights off": (V2, SERVED, lambda f: save(f, V2, weights(V2), tie_word_embeddings=False)),
    # ---- types and other tensors
    "float64": (V2, SERVED, lambda f: save(f, V2, {k: v.double() for k, v in weights(V2).items()})),
    "parameters instead of tensors": (V1, SERVED, lambda f: pickle(f, V1, {k: torch.nn.Parameter(v) for k, v in weights(V1).items()})),
    "with RoPE's buffers": (V2, SERVED, lambda f: save(f, V2, weights(V2) | {
        f"transformer.h.{i}.attn.rotary.inv_freq": torch.ones(8) for i in range(3)})),
    "with an integer buffer": (V2, CONVERTED, lambda f: save(f, V2, weights(V2) | {"readout._kernel_index": torch.arange(4)})),
    # ---- wrappers
    "torch.compile": (V2, CONVERTED, lambda f: save(f, V2, prefixed("_orig_mod.", weights(V2)))),
    "torch.compile of a block": (V2, CONVERTED, lambda f: save(f, V2, inside(weights(V2)))),
    "DistributedDataParallel": (V2, CONVERTED, lambda f: save(f, V2, prefixed("module.", weights(V2)))),
    "both": (V1, CONVERTED, lambda f: pickle(f, V1, prefixed("module._orig_mod.", tied(weights(V1))))),
    "a module named model": (V1, CONVERTED, lambda f: save(f, V1, prefixed("model.", weights(V1)))),
    # ---- torch.save
    "a bare state_dict": (V2, CONVERTED, lambda f: pickle(f, V2, collections.OrderedDict(tied(weights(V2))))),
    "a state_dict under another name": (V1, CONVERTED, lambda f: pickle(f, V1, weights(V1), "weights.pt")),
    "nanoGPT's ckpt.pt without config.json": (V2, CONVERTED, lambda f: (f.mkdir(), torch.save(nano_gpt(V2), f / "ckpt.pt"))),
    "nanoGPT's ckpt.pt beside config.json": (V1, CONVERTED, lambda f: pickle(f, V1, nano_gpt(V1, model_args={}), "ckpt.pt")),
    "nanoGPT's ckpt.pt called pytorch_model.bin": (V2, CONVERTED, lambda f: pickle(f, V2, nano_gpt(V2))),
    "--model names nanoGPT's file itself": (V2, CONVERTED, lambda f: torch.save(nano_gpt(V2), f)),
    "Lightning's ckpt": (V2, CONVERTED, lambda f: (f.mkdir(), torch.save(
        {"state_dict": collections.OrderedDict(prefixed("model.", weights(V2))), "hyper_parameters": {"model": config(V2), "lr": 1e-3},
         "epoch": 3, "pytorch-lightning_version": "2.5.0"}, f / "last.ckpt"))),
    "before zip archives": (V1, CONVERTED, lambda f: pickle(f, V1, weights(V1), _use_new_zipfile_serialization=False)),
    "a newer pickle protocol": (V1, CONVERTED, lambda f: pickle(f, V1, weights(V1), pickle_protocol=4)),
    "numbers beside the tensors": (V1, CONVERTED, lambda f: pickle(f, V1, weights(V1) | {"step": 7})),
    "a mask of booleans beside the tensors": (V1, CONVERTED, lambda f: pickle(f, V1, {
        "model": weights(V1), "mask": torch.ones(2, dtype=torch.bool)})),
    # ---- places
    "safetensors under another name": (V2, CONVERTED, lambda f: (write_config(f, V2), save_file(weights(V2), f / "ckpt_final.safetensors"))),
    "a trainer's folder of folders": (V2, CONVERTED, lambda f: shutil.copytree(golden(V2), f / "checkpoint-1000")),
    "a path that a shell would take apart": (V2, CONVERTED, lambda f: save(f, V2, prefixed("_orig_mod.", weights(V2)))),
    # ---- keys of another revision
    "mup under today's names": ("v2_ccec_widthmup", CONVERTED, lambda f: save(
        f, "v2_ccec_widthmup", weights("v2_ccec_widthmup"), parameterization=None, mup=True)),
    "mup: false under today's names": (V2, CONVERTED, lambda f: save(f, V2, weights(V2), mup=False)),
    "completeP under the old names": ("v2_ccec_completep", CONVERTED, lambda f: save(f, "v2_ccec_completep", {
        k.replace("o_proj", "c_proj").replace("input_embed.weight", "input_embed.conv.weight"):
            v.flatten(0, 1).unsqueeze(1) if k == "input_embed.weight" else v for k, v in weights("v2_ccec_completep").items()})),
}
FOLDERS = {"--model names nanoGPT's file itself": "ckpt.pt", "a path with separators": "d=32,L=3 (final)",
           "a path that a shell would take apart": "it's $HOME; \"my\" model"}


def driver(folder, ids):
    return subprocess.run([str(DRIVER), str(folder), *map(str, ids)], capture_output=True, cwd=ROOT)


def test_there_are_thirty_kinds():
    assert len(SAVES) >= 30


@pytest.mark.skipif(not DRIVER.exists(), reason=f"{DRIVER} is not built")
@pytest.mark.parametrize("name", SAVES)
def test_is_served_or_refused_with_the_command_that_mends_it(tmp_path, name):
    case, expected, make = SAVES[name]
    folder = tmp_path / FOLDERS.get(name, "model")
    make(folder)
    gold = load_file(golden(case) / "golden.safetensors")
    ids = gold["input_ids"][0].tolist()
    answer = driver(folder, ids)
    if expected == CONVERTED:
        message = answer.stderr.decode()
        assert answer.returncode == 2 and str(tmp_path) in message, message
        command = message.rstrip("\n").splitlines()[-1].strip()
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path})
        assert done.returncode == 0, command + "\n" + done.stdout + done.stderr
        assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}  # never in place
        answer = driver(f"{folder}-converted", ids)
    assert answer.returncode == 0, answer.stderr.decode()
    found = torch.frombuffer(bytearray(answer.stdout), dtype=torch.float32).view(len(ids), -1)
    assert (found - gold["logits"][0]).abs().max() < CLOSE

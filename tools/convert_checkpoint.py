#!/usr/bin/env python3
"""Writes a checkpoint, in whatever form a training run left it, as a folder that the server reads.

    tools/convert_checkpoint.py out/ckpt.pt models/mine
    tools/convert_checkpoint.py models/old models/new --revision d1f7621 --dtype bfloat16

SOURCE is a file or a folder: safetensors or what torch.save wrote, one file or shards, a bare state_dict or one among a
trainer's optimizer and settings, with or without the prefixes of torch.compile and DistributedDataParallel, of any revision
of the official code, in any floating-point type. The configuration is config.json beside it, or what the trainer saved with
the weights. DESTINATION gets config.json, model.safetensors, and the tokenizer's files. SOURCE is never written to.

At the end the logits of both are compared, by this project's own PyTorch model.
"""
from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import pathlib
import pickle
import shutil
import sys
from collections.abc import Mapping

import torch
from tqdm import tqdm

from ddl_config import DEPTH_SCALED, NEWEST, REVISIONS, WIDTH_SCALED, Config, ConfigError, Layout, parameters
from ddl_torch import Model, stored_tensors, with_embedding
from safetensors_writer import write_safetensors

CODES = {"float32": "F32", "bfloat16": "BF16"}
# What wrappers put into the names of a model's tensors.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Where trainers keep the weights and the model's settings.
WEIGHT_KEYS = ("model", "model_state_dict", "state_dict", "module", "weights")
CONFIG_KEYS = ("model_args", "model_config", "config", "hyper_parameters", "hparams", "args")
# What makes a dict the model's settings.
TELLING = {"hidden_size", "num_attention_heads", "head_dim"}
KEPT_KEYS = ("eos_token_id", "bos_token_id", "pad_token_id")
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
              "vocab.json", "merges.txt", "encoder.json", "vocab.bpe", "*.tiktoken", "generation_config.json", "chat_template*")
TOLERANCE = 1e-5  # of the two models' logits: the same code on the same numbers


class ConversionError(Exception):
    """The source cannot be converted; the message is for the person who has it."""


# ---- reading


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The file or shards of a folder that hold its weights; none if there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return [folder / shard for shard in shards]
    for endings in ((".safetensors",), (".pt", ".pth", ".ckpt", ".bin")):
        found = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in endings)
        if len(found) > 1 and folder / "ckpt.pt" in found:
            return [folder / "ckpt.pt"]
        if len(found) > 1:
            raise ConversionError(f"{folder} holds several: {', '.join(p.name for p in found)}. Name one of them as SOURCE")
        if found:
            return found
    return []


def locate(source: pathlib.Path) -> list[pathlib.Path]:
    if source.is_file():
        if not source.name.endswith(".index.json"):
            return [source]
        return weight_files(source.parent)
    if not source.is_dir():
        raise ConversionError(f"{source} cannot be found")
    files = weight_files(source)
    if files:
        return files
    below = [folder for folder in sorted(source.iterdir()) if folder.is_dir() and weight_files(folder)]
    if len(below) > 1:
        raise ConversionError(f"{source} holds several checkpoints: {', '.join(p.name for p in below)}. Name one of them as SOURCE")
    if not below:
        raise ConversionError(f"{source} holds no weights: expected *.safetensors, *.bin, *.pt, *.pth or *.ckpt")
    return weight_files(below[0])


class TensorPickle:
    """For torch.load in place of the pickle module: reads every protocol, where torch's own weights_only knows but one, and
    names nothing that is not part of a tensor or a plain container."""

    ALLOWED = {("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device"), ("torch._utils", "_rebuild_tensor_v2"),
               ("torch._utils", "_rebuild_parameter")}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) not in TensorPickle.ALLOWED:
                raise pickle.UnpicklingError(f"it names {module}.{name}")
            return super().find_class(module, name)

    load = staticmethod(pickle.load)  # torch.load looks for both
    dumps = staticmethod(pickle.dumps)
    __name__ = "TensorPickle"


def load(path: pathlib.Path, trust: bool):
    """What a file holds. Nothing in it is run unless `trust`."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file
        return load_file(path)
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=True)
        except RuntimeError:  # the format before zip archives cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as e:
        if trust:
            raise ConversionError(f"{path} cannot be read: {e}")
        try:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=TensorPickle)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as e:
            raise ConversionError(f"{path} holds more than tensors and plain values: {str(e).splitlines()[0]}\n"
                                  "--trust loads it nevertheless, and runs what code is in it: for files whose maker you know")
    except (RuntimeError, EOFError, ValueError, AttributeError, ImportError) as e:
        raise ConversionError(f"{path} cannot be read: {str(e).splitlines()[0] if str(e) else type(e).__name__}")


def is_weights(value) -> bool:
    return isinstance(value, Mapping) and any(str(k).endswith("attn.c_q.weight") and torch.is_tensor(v) for k, v in value.items())


def find_weights(value, path: pathlib.Path) -> Mapping:
    """The state_dict in what a trainer saved."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if is_weights(value):
        return value
    found = {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            inner = inner.state_dict() if isinstance(inner, torch.nn.Module) else inner
            if is_weights(inner):
                found[str(key)] = inner
    for key in WEIGHT_KEYS:
        if key in found:
            return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    keys = ", ".join(sorted(map(str, value))[:12]) if isinstance(value, Mapping) else type(value).__name__
    raise ConversionError(f"{path} holds no tensors of this model family (none is named …attn.c_q.weight); it holds: {keys}")


def find_config(value) -> dict | None:
    """The model's settings in what a trainer saved."""
    candidates = [value[k] for k in CONFIG_KEYS if k in value] + list(value.values()) if isinstance(value, Mapping) else []
    for candidate in candidates:
        for settings in (candidate, getattr(candidate, "__dict__", None)):
            if isinstance(settings, Mapping) and TELLING <= settings.keys():
                return dict(settings)
            inner = settings.values() if isinstance(settings, Mapping) else ()
            for nested in inner:
                if isinstance(nested, Mapping) and TELLING <= nested.keys():
                    return dict(nested)
    return None


def plain_name(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def without_prefix(tensors: dict) -> dict:
    """The tensors without what stands before the family's names in all of them alike."""
    tensors = {plain_name(k): v for k, v in tensors.items()}
    for known in ("transformer.wte.weight", "lm_head.weight"):
        for name in tensors:
            prefix = name.removesuffix(known)
            if name.endswith(known) and prefix and all(k.startswith(prefix) for k in tensors):
                return {k[len(prefix):]: v for k, v in tensors.items()}
    return tensors


@dataclasses.dataclass
class Source:
    path: pathlib.Path  # of the file, or of the first shard
    config: dict
    tensors: dict[str, torch.Tensor]  # as stored, under the official names of their revision


def read(args) -> Source:
    files = locate(args.source)
    config_path = args.config or files[0].parent / "config.json"
    if args.config and not args.config.is_file():
        raise ConversionError(f"--config: {args.config} cannot be found")
    config = json.loads(config_path.read_text()) if config_path.is_file() else None
    tensors = {}
    for path in files:
        loaded = load(path, args.trust)
        shard = loaded if len(files) > 1 and isinstance(loaded, Mapping) else find_weights(loaded, path)
        tensors |= {str(k): v for k, v in shard.items() if torch.is_tensor(v)}
        config = config or find_config(loaded)
    if config is None:
        raise ConversionError(f"{files[0]} has no config.json beside it, and no settings of the model in it: name a "
                              "config.json with --config")
    tensors = with_embedding(without_prefix(tensors))
    tensors = {k: v for k, v in tensors.items() if not any(fnmatch.fnmatch(k, pattern) for pattern in args.ignore)}
    return Source(files[0], config, tensors)


# ---- what it means


def config_of(source: Source) -> tuple[Config, list[str]]:
    """The configuration by the source's own revision, and what there is to say about it."""
    config, notes = dict(source.config), []
    layout = Layout.of({k: tuple(v.shape) for k, v in source.tensors.items()})
    asks_newest = config.get("parameterization") in WIDTH_SCALED + DEPTH_SCALED or config.get("residual_branch_mult") is not None
    if layout.revision == NEWEST and "mup" in config:
        if config.pop("mup") and config.get("parameterization") is None:
            config["parameterization"] = "widthmuP"
            notes.append("mup: true is of older revisions; taken as parameterization: widthmuP")
    cfg = None
    if layout.revision != NEWEST and asks_newest:
        notes.append(f"config.json has keys of {NEWEST}, the tensors have names of {layout.revision}: computed as {NEWEST} does")
        keys = {k: config.pop(k) for k in ("parameterization", "residual_branch_mult", "num_hidden_layers_base") if k in config}
        if config.pop("mup", False):
            keys.setdefault("parameterization", "widthmuP")
        cfg = Config.from_checkpoint(config, {k: tuple(v.shape) for k, v in source.tensors.items()})
        cfg = dataclasses.replace(cfg, revision=NEWEST, **keys)
    return cfg or Config.from_checkpoint(config, {k: tuple(v.shape) for k, v in source.tensors.items()}), notes


def converted(cfg: Config, revision: str, obey_causal: bool, tied: bool) -> tuple[Config, list[str]]:
    """The configuration that means the same in another revision."""
    notes, changes = [], {"revision": revision}
    causal = cfg.ddl_state_dv_shortconv_causal and (cfg.channels_are_causal or obey_causal)
    if cfg.ddl_state_dv_shortconv_causal and not causal:
        notes.append("ddl_state_dv_shortconv_causal: true becomes false, for the official code of 2b55f25 ignored it "
                     "(--obey-dv-shortconv-causal keeps it, as the accelerated code did)")
    changes["ddl_state_dv_shortconv_causal"] = causal
    if causal and revision == "2b55f25":
        raise ConversionError("ddl_state_dv_shortconv_causal: the code of 2b55f25 ignores it; choose another --revision")
    if revision == NEWEST:
        if cfg.mup:
            changes |= {"mup": False, "parameterization": "widthmuP"}
    elif cfg.revision == NEWEST:
        if cfg.residual_multiplier != 1.0:
            raise ConversionError(f"the residual multiplier is {cfg.residual_multiplier:g}, and the code of {revision} has none; "
                                  f"choose --revision {NEWEST}")
        if not tied:
            raise ConversionError(f"lm_head.weight differs from transformer.wte.weight, and the code of {revision} ties them; "
                                  f"choose --revision {NEWEST}")
        changes |= {"mup": cfg.parameterization in WIDTH_SCALED + DEPTH_SCALED, "parameterization": None,
                    "residual_branch_mult": None, "num_hidden_layers_base": None}
    return dataclasses.replace(cfg, **changes), notes


def check_shapes(cfg: Config, tensors: dict):
    """`tensors` under this program's names."""
    expected = {k: p.shape for k, p in parameters(cfg).items()}
    if "lm_head.weight" in tensors:
        expected["lm_head.weight"] = expected["transformer.wte.weight"]
    problems = [f"{k}: missing, expected {v}" for k, v in expected.items() if k not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"{name}: {tuple(tensor.shape)}, but there is no such tensor in this model (--ignore leaves it out)")
        elif tuple(tensor.shape) != expected[name]:
            problems.append(f"{name}: found {tuple(tensor.shape)}, expected {expected[name]}")
        elif not tensor.is_floating_point():
            problems.append(f"{name}: {tensor.dtype} is no floating-point type")
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise ConversionError("tensors and configuration do not match:\n  " + "\n  ".join(problems[:20] + more))


# ---- writing


def raw(tensor: torch.Tensor, dtype: torch.dtype) -> bytes:
    return tensor.detach().to(dtype).contiguous().view(torch.uint8).numpy().tobytes()


def write(folder: pathlib.Path, source: Source, cfg: Config, own: dict, dtype: str):
    stored = stored_tensors(own, cfg)
    shapes = {k: tuple(v.shape) for k, v in stored.items()}
    total = sum(v.numel() for v in stored.values()) * getattr(torch, dtype).itemsize
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="writing", dynamic_ncols=True) as bar:
        def data_of(name: str) -> bytes:
            data = raw(stored[name], getattr(torch, dtype))
            bar.update(len(data))
            return data

        write_safetensors(folder / "model.safetensors", shapes, CODES[dtype], data_of)
    config = cfg.to_json(dtype) | {k: source.config[k] for k in KEPT_KEYS if source.config.get(k) is not None}
    (folder / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=1) + "\n")
    for path in sorted(source.path.parent.iterdir()):
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in COMPANIONS):
            shutil.copyfile(path, folder / path.name)


# ---- comparison


@torch.no_grad()
def logits_of(cfg: Config, own: dict, obey_causal: bool, dtype: torch.dtype, ids: torch.Tensor) -> torch.Tensor:
    with torch.device("meta"):
        model = Model(cfg, obey_causal, tied="lm_head.weight" not in own)
    model.load_state_dict({k: v.to(dtype).float() for k, v in own.items()}, assign=True)
    return model.eval()(ids)


def some_ids(cfg: Config) -> torch.Tensor:
    tokens = min(cfg.block_size, 48)
    return torch.randint(cfg.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def verify(folder: pathlib.Path, expected: torch.Tensor, exact: torch.Tensor, ids: torch.Tensor) -> str:
    """Compares with the source's logits by its weights as rounded, and says how far those are from the weights as they were."""
    found = Model.load(folder)(ids)
    apart = (found - expected).abs().max().item()
    if not apart <= TOLERANCE * max(1.0, expected.abs().max().item()):  # a NaN fails
        raise ConversionError(f"the result's logits are {apart:.2g} from the source's: this is a mistake in the converter")
    said = f"verified: logits of {ids.numel()} random positions differ by at most {apart:.1e}"
    if not torch.equal(exact, expected):
        same = (found.argmax(-1) == exact.argmax(-1)).float().mean().item()
        said += f"; rounding moved them by at most {(found - exact).abs().max().item():.2g}, the likeliest token is the same at {100 * same:.0f} %"
    return said


# ---- the command


def add_arguments(p: argparse.ArgumentParser):
    p.add_argument("source", type=pathlib.Path, metavar="SOURCE", help="file or folder to convert")
    p.add_argument("destination", type=pathlib.Path, metavar="DESTINATION", help="folder to write; must not exist, or be empty")
    p.add_argument("--revision", choices=REVISIONS, default=NEWEST, help=f"of the official code, whose names to write (default {NEWEST})")
    p.add_argument("--dtype", choices=CODES, help="of the result (default: bfloat16 where the source has it, else float32)")
    p.add_argument("--config", type=pathlib.Path, metavar="FILE", help="config.json to use (default: that beside the weights)")
    p.add_argument("--ignore", action="append", default=[], metavar="PATTERN",
                   help="leave out tensors with such names, e.g. 'value_head.*'; may be given several times")
    p.add_argument("--obey-dv-shortconv-causal", action="store_true",
                   help="of 2b55f25: compute what its accelerated code did, which unlike the plain one obeys the key")
    p.add_argument("--trust", action="store_true", help="unpickle whatever the file holds: runs what code is in it")
    p.add_argument("--no-verify", action="store_true", help="do not compare the logits at the end")


def own_of(source: Source, cfg: Config) -> dict:
    layout = Layout.of({k: tuple(v.shape) for k, v in source.tensors.items()})
    own = {}
    for name, tensor in source.tensors.items():
        name, shape = layout.own(name, tuple(tensor.shape))
        own[name] = tensor.reshape(shape)
    check_shapes(cfg, own)
    head = own.get("lm_head.weight")
    # Only the newest revision's code keeps a head that differs from the embedding.
    if head is not None and (cfg.revision != NEWEST or torch.equal(head, own["transformer.wte.weight"])):
        del own["lm_head.weight"]
    return own


def convert(args) -> None:
    if args.destination.exists() and (not args.destination.is_dir() or any(args.destination.iterdir())):
        raise ConversionError(f"{args.destination} is there already: name a folder that is not, or an empty one")
    source = read(args)
    cfg, notes = config_of(source)
    own = own_of(source, cfg)
    target, more = converted(cfg, args.revision, args.obey_dv_shortconv_causal, "lm_head.weight" not in own)
    dtype = args.dtype or ("bfloat16" if own["transformer.wte.weight"].dtype == torch.bfloat16 else "float32")
    for note in notes + more:
        print(f"note: {note}")
    print(f"{source.path}: {cfg.variant} of {cfg.revision}, {sum(v.numel() for v in own.values()):,} parameters", flush=True)

    unfinished = args.destination.with_name(args.destination.name + ".unfinished")  # a broken-off run leaves no checkpoint
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        write(unfinished, source, target, own, dtype)
        if not args.no_verify:
            ids = some_ids(cfg)
            exact = logits_of(cfg, own, args.obey_dv_shortconv_causal, torch.float32, ids)
            rounds = any(v.to(getattr(torch, dtype)).dtype != v.dtype for v in own.values())
            expected = logits_of(cfg, own, args.obey_dv_shortconv_causal, getattr(torch, dtype), ids) if rounds else exact
            del own, source
            print(verify(unfinished, expected, exact, ids))
        if args.destination.exists():
            args.destination.rmdir()
        unfinished.rename(args.destination)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    print(f"{args.destination}: {dtype}, as the official code writes it at {target.revision}")


def run(args) -> int:
    try:
        convert(args)
    except (ConversionError, ConfigError, json.JSONDecodeError, OSError) as e:
        print(f"convert: {e}", file=sys.stderr)
        return 2
    return 0


def main(argv=None, prog=None) -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

"""tokenizer.json files as the models of the world have them, with small vocabularies trained here.

Each has the normalizer, pre-tokenizer with its regular expressions, post-processor, decoder and options of the model that
it is named after; "-like" says that the vocabulary is not that model's.
"""

import functools
import json
import pathlib

import tokenizers
from tokenizer_strings import CONTRACTIONS, EMOJI, FORMS, WORDS

ROOT = pathlib.Path(__file__).parents[3]
VOCABULARY_SIZE = 1500


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **options}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(members, *parts):
    return {"type": "Sequence", members: list(parts)}


def words(*parts):
    return sequence("pretokenizers", *parts)


def by_pattern(pattern, **options):
    """Words by a regular expression, then bytes."""
    return words(split(pattern, **options), byte_level(use_regex=False))


def template(before=(), after=()):
    """A template of tokens named by their contents; their ids come once the vocabulary is there."""
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in before]
    special.append({"Sequence": {"id": "A", "type_id": 0}})
    special += [{"SpecialToken": {"id": name, "type_id": 0}} for name in after]
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    names = {name: {"id": name, "ids": [name], "tokens": [name]} for name in [*before, *after]}
    return {"type": "TemplateProcessing", "single": special, "pair": pair, "special_tokens": names}


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = words(
    split(r"\p{N}{1,3}"),
    split("[一-龥\u3040-ゟ゠-ヿ]+"),
    split(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    ),
    byte_level(use_regex=False),
)
DEEPSEEK_CODER = words(
    split("[\r\n]"),
    split(r"\s?\p{L}+"),
    split(r"\s?\p{P}+"),
    split("[一-龥ࠀ-一가-\ud7ff]+"),
    {"type": "Digits", "individual_digits": True},
    byte_level(use_regex=False),
)
DEEPSEEK_LLM = words(
    split("[\r\n]"),
    split(
        "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
        "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
        "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-"
        "\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57"
        "\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-"
        "\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
        "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
        "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-"
        "\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
        "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
        "\U000118a0-\U000118df\U0001e900-\U0001e943]+"
    ),
    split(
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
    ),
    split(r"\s+$"),
    split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
    {"type": "Digits", "individual_digits": True},
    byte_level(use_regex=False),
)
FALCON = words(
    {"type": "Punctuation", "behavior": "Contiguous"},
    byte_level(),
    {"type": "Digits", "individual_digits": False},
    split("[0-9][0-9][0-9]"),
)
CLIP = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
SPACES = [" " * count for count in range(24, 1, -1)]
FALLBACK_DECODER = sequence(
    "decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
)
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def added(*contents, **flags):
    """Added tokens that are not special."""
    return [{"content": content, "special": False, "normalized": True, **flags} for content in contents]


# Everything but the vocabulary. `special`: tokens the trainer puts first. `added`: tokens put after the vocabulary.
# `model`: options of the model. `suffix` and the like are the trainer's.
CONFIGURATIONS = {
    "GPT-2-like": {"pre_tokenizer": byte_level(), "post_processor": byte_level(trim_offsets=False)},
    "RoBERTa-like": {
        "special": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "pre_tokenizer": byte_level(),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", "</s>"],
            "cls": ["<s>", "<s>"],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "flags": {"<mask>": {"lstrip": True}},
    },
    "BART-like with a prefix space": {
        "special": ["<s>", "</s>"],
        "pre_tokenizer": byte_level(add_prefix_space=True),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", "</s>"],
            "cls": ["<s>", "<s>"],
            "trim_offsets": True,
            "add_prefix_space": True,
        },
    },
    "cl100k-like": {"pre_tokenizer": by_pattern(CL100K, behavior="Removed", invert=True), "post_processor": byte_level()},
    "cl100k-like, possessive": {"pre_tokenizer": by_pattern(CL100K_POSSESSIVE), "post_processor": byte_level()},
    "o200k-like": {"pre_tokenizer": by_pattern(O200K, behavior="Removed", invert=True), "post_processor": byte_level()},
    "Llama-3-like": {
        "special": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        "pre_tokenizer": by_pattern(CL100K),
        "post_processor": sequence("processors", byte_level(), template(["<|begin_of_text|>"])),
        "model": {"ignore_merges": True},
    },
    "GLM-4-like": {
        "special": ["[gMASK]", "<sop>", "<|user|>"],
        "pre_tokenizer": by_pattern(CL100K),
        "post_processor": sequence("processors", byte_level(trim_offsets=False), template(["[gMASK]", "<sop>"])),
        "model": {"ignore_merges": True},
    },
    "Qwen2.5-like": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": by_pattern(QWEN2),
        "post_processor": byte_level(trim_offsets=False, use_regex=False),
        "added": added("<|im_start|>", special=True, normalized=False) + added("<tool_call>", normalized=False),
    },
    "Qwen3.5-like": {"normalizer": {"type": "NFC"}, "pre_tokenizer": by_pattern(QWEN3_5), "post_processor": byte_level()},
    "MiniMax-like": {"normalizer": {"type": "NFC"}, "pre_tokenizer": by_pattern(O200K, behavior="Removed", invert=True)},
    "Kimi-like": {"pre_tokenizer": by_pattern(KIMI), "post_processor": byte_level()},
    "DeepSeek-V3-like": {
        "special": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        "normalizer": sequence("normalizers"),
        "pre_tokenizer": DEEPSEEK_V3,
        "post_processor": template(["<｜begin▁of▁sentence｜>"]),
    },
    "DeepSeek-Coder-like": {"pre_tokenizer": DEEPSEEK_CODER, "post_processor": byte_level(trim_offsets=False)},
    "DeepSeek-LLM-like": {"pre_tokenizer": DEEPSEEK_LLM, "post_processor": byte_level(trim_offsets=False)},
    "Falcon-like": {"pre_tokenizer": FALCON, "post_processor": byte_level(add_prefix_space=True)},
    "SmolLM-like": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "pre_tokenizer": words({"type": "Digits", "individual_digits": True}, byte_level()),
    },
    "NeoX-like": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level(),
        "post_processor": byte_level(),
        "added": added(*SPACES) + added("|||EMAIL|||", lstrip=True) + added("|||IP|||", rstrip=True, single_word=True),
    },
    "Phi-2-like": {"pre_tokenizer": byte_level(), "post_processor": byte_level(), "added": added(*SPACES, "\t\t", "\t\t\t")},
    "BLOOM-like": {
        "pre_tokenizer": by_pattern(BLOOM),
        "post_processor": byte_level(add_prefix_space=True),
    },
    "Claude-2-like": {"normalizer": {"type": "NFKC"}, "pre_tokenizer": byte_level(), "post_processor": byte_level()},
    "CLIP-like": {
        "normalizer": sequence("normalizers", {"type": "NFC"}, replace(r"\s+", " ", "Regex"), {"type": "Lowercase"}),
        "pre_tokenizer": words(split(CLIP, "Removed", True), byte_level()),
        "special": ["<|startoftext|>", "<|endoftext|>"],
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["<|endoftext|>", "<|endoftext|>"],
            "cls": ["<|startoftext|>", "<|startoftext|>"],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "trainer": {"end_of_word_suffix": "</w>"},
        "model": {"unk_token": "<|endoftext|>"},
    },
    "Llama-2-like": {
        "special": ["<unk>", "<s>", "</s>", *BYTE_TOKENS],
        "only_special": ["<unk>", "<s>", "</s>"],
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        "post_processor": template(["<s>"]),
        "decoder": FALLBACK_DECODER,
        "model": {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    },
    "Mistral-like": {
        "special": ["<unk>", "<s>", "</s>", "[INST]", *BYTE_TOKENS],
        "only_special": ["<unk>", "<s>", "</s>", "[INST]"],
        "pre_tokenizer": {**METASPACE, "prepend_scheme": "first", "split": False},
        "post_processor": template(["<s>"], ["</s>"]),
        "decoder": FALLBACK_DECODER,
        "model": {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": True},
    },
    "Gemma-like": {
        "special": ["<pad>", "<eos>", "<bos>", "<unk>", *BYTE_TOKENS],
        "only_special": ["<pad>", "<eos>", "<bos>", "<unk>"],
        "normalizer": replace(" ", "▁"),
        "pre_tokenizer": split(" ", "MergedWithPrevious", kind="String"),
        "post_processor": template(["<bos>"]),
        "decoder": sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
        "model": {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        "added": added("\n\n", "\n\n\n", normalized=False),
    },
    "Metaspace": {
        "special": ["<unk>"],
        "pre_tokenizer": METASPACE,
        "decoder": METASPACE,
        "model": {"unk_token": "<unk>"},
    },
    "GPT-1-like": {
        "special": ["<unk>"],
        "normalizer": sequence("normalizers", {"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "trainer": {"end_of_word_suffix": "</w>"},
        "model": {"unk_token": "<unk>"},
    },
    "continuing subwords": {
        "special": ["[UNK]", "[CLS]", "[SEP]"],
        "normalizer": sequence("normalizers", {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFKD"}),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", "[SEP]"], "cls": ["[CLS]", "[CLS]"]},
        "decoder": None,
        "trainer": {"continuing_subword_prefix": "##"},
        "model": {"unk_token": "[UNK]", "fuse_unk": True},
    },
    "punctuation with what follows": {
        "normalizer": {"type": "Strip", "strip_left": False, "strip_right": True},
        "pre_tokenizer": words({"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "MergedWithNext"}),
        "decoder": {"type": "Fuse"},
        "special": ["<unk>"],
        "model": {"unk_token": "<unk>"},
    },
    "delimiters, unknown characters left out": {
        "pre_tokenizer": words(
            {"type": "CharDelimiterSplit", "delimiter": " "},
            {"type": "Punctuation", "behavior": "MergedWithPrevious"},
            split(r"\d+", "MergedWithNext"),
            split("a", "Contiguous", kind="String"),
        ),
        "decoder": sequence("decoders"),
    },
    "bytes by the normalizer": {
        "normalizer": sequence("normalizers", {"type": "Lowercase"}, {"type": "ByteLevel"}),
        "pre_tokenizer": split(r"Ġ?[^\sĠ]+", "Isolated"),
        "post_processor": byte_level(),
        "added": added("KÖLN", "ﬁn", "I", lstrip=True),
    },
    "lines, letters and the like": {
        "pre_tokenizer": words(
            split(r"^\s+|\s+$|(?<=\w)\b(?=\W)", "Removed"),
            split(r"(?i:kÖln|K+\b)|[[:upper:]]{2,}?|[\w&&[^\d_]]{1,4}|\h{2,}|[^\S\r\n]+|(?m:a.b)|\p{^L}{,3}|.+", "Isolated"),
            byte_level(use_regex=False),
        ),
        "post_processor": byte_level(),
    },
}


@functools.cache
def corpus():
    """A little English prose and some of everything else."""
    prose = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md"))]
    lines = [line for text in prose for line in text.splitlines(keepends=True)]
    pieces = [*WORDS, *CONTRACTIONS, *EMOJI, *FORMS]
    lines += [" ".join(pieces[i : i + 7]) for i in range(0, len(pieces), 3)] * 3
    return lines


def tokenizer_json(configuration):
    """The whole tokenizer.json of a configuration, with a vocabulary trained for it."""
    special, flags = configuration.get("special", ["<|endoftext|>"]), configuration.get("flags", {})
    is_byte_level = configuration.get("decoder", "ByteLevel") == "ByteLevel"
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": configuration.get("normalizer"),
        "pre_tokenizer": configuration.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": byte_level() if is_byte_level else configuration["decoder"],
        "model": {**model, "vocab": {}, "merges": []},
    }
    trained = tokenizers.Tokenizer.from_str(json.dumps(spec))
    options = {"initial_alphabet": tokenizers.pre_tokenizers.ByteLevel.alphabet()} if is_byte_level else {"limit_alphabet": 250}
    if "end_of_word_suffix" in configuration.get("trainer", {}) and is_byte_level:
        options["limit_alphabet"] = 256
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special,
        show_progress=False,
        max_token_length=16,
        **options,
        **configuration.get("trainer", {}),
    )
    trained.train_from_iterator(corpus(), trainer)
    spec = json.loads(trained.to_str())
    spec["model"].update(configuration.get("model", {}))
    ids = spec["model"]["vocab"]
    for content in special:
        if content in configuration.get("only_special", special):
            continue
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != content]
    for token in spec["added_tokens"]:
        token.update(flags.get(token["content"], {}))
    next_id = max(ids.values()) + 1
    for token in configuration.get("added", []):
        if token["content"] in ids:
            id = ids[token["content"]]
        else:
            id, next_id = next_id, next_id + 1
        defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        spec["added_tokens"].append({"id": id, **defaults, **token})
    post_processor = json.loads(json.dumps(configuration.get("post_processor")), object_hook=lambda part: with_ids(part, ids))
    return {**spec, "post_processor": post_processor}


def with_ids(part, ids):
    """A post-processor's part with ids for the names of its tokens."""
    if "tokens" in part:
        part["ids"] = [ids[name] for name in part["ids"]]
    for key in ("sep", "cls"):
        if isinstance(part.get(key), list):
            part[key][1] = ids[part[key][1]]
    return part

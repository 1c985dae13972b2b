"""Strings that tokenizers get wrong: every kind of white space, joined emoji, marks, other scripts' digits, long runs."""

import random

END_OF_TEXT = "<|endoftext|>"
WHITE_SPACE = [
    *" \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff",
    "\r\n",
]
CONTRACTIONS = [
    quote + letters
    for quote in ("'", "\u2019")
    for letters in ("s", "t", "m", "d", "ll", "ve", "re", "S", "T", "LL", "Ve", "lL", "l", "v", "\u017f", "'s", "")
]
EMOJI = [
    *"😀🎉👍🏽❤️⌚🧑🇩🇪🏴",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👩🏿‍🚀",
    "🇫🇷",
    "1️⃣",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
]
MARKS = ["e\u0301", "n\u0303\u0323", "a" + "\u0300" * 20, "\u0e01\u0e33", "\u0915\u094d\u0937", "\u064b\u0651", "Z\u0351\u036b"]
# What normalization forms change: composed, decomposed, in another order, of several letters, Hangul, and compatible.
FORMS = [
    *"éÅ\u212b\u1e9b\u0323ﬁﬃ①Ⅳ㎏㍿½²ₐ\u00a8\u037e\u0344\ufb1d\u3000\u200b\u0958\u2126\uac00한글ｶﾞ\u0130ẞßΣς",
    "e\u0323\u0301",
    "\u0301e",
    "a\u0315\u0300\u05ae\u0062",
    "\u1100\u1161\u11a8",
    "\uac00\u11a8",
    "q\u0307\u0323",
    "\u1025\u102e",
    "I\u0307",
    "\U0001d15e",
    "\u0340\u0341\u0343",
    "\ufdfa",
    "x" + "\u0334\u0301\u0316" * 5,
]
CONTROL = [chr(c) for c in [*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x202E, 0xFFFD, 0xFFFE, 0xFFFF, 0x10FFFF]]
WORDS = (
    "the of and model Deep Delta Learning don't DON'T I'll we've naïve façade straße ǅungla ﬁn Ⅻ ½ x² 三百 ٣٤ १२ 12345 3.14159 "
    "0x7f foo_bar http://example.org/?q=a%20b&c=d <b>bold</b> {\"k\":[1,2]} --- ... !!! $100 €5 Привет Ελληνικά עברית العربية "
    "日本語 テスト 中文字符 한국어 ภาษาไทย हिन्दी தமிழ் 𝕳𝖊𝖑𝖑𝖔 𐍈𐌰 𒀀𒁀 𓀀 antidisestablishmentarianism ▁ ▁a <0x41> <0xE2> ## ##a </w> a</w> Ġ Ċ"
).split()
SPECIAL = [END_OF_TEXT, " " + END_OF_TEXT + " ", "<|endoftext|", "|endoftext|>", "<|EndOfText|>", END_OF_TEXT * 2]
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
PLANES = [(0x10000 * plane, 0x10000 * plane + 0xFFFF) for plane in range(17)]


def random_code_point(chance):
    low, high = chance.choice([(0x20, 0x7E), (0xA0, 0x2FF), (0x300, 0x7FF), (0x800, 0xFFFF), *PLANES])
    while True:
        code_point = chance.randint(low, high)
        if not 0xD800 <= code_point < 0xE000:
            return chr(code_point)


def random_string(chance, special=()):
    """Pieces of several kinds, glued together; sometimes of one kind only."""
    kinds = [
        lambda: chance.choice(WORDS),
        lambda: " " + chance.choice(WORDS),
        lambda: "".join(chance.choice(WHITE_SPACE) for _ in range(chance.randint(1, 5))),
        lambda: " " * chance.randint(1, 9),
        lambda: chance.choice(CONTRACTIONS),
        lambda: chance.choice(EMOJI),
        lambda: chance.choice(MARKS),
        lambda: chance.choice(FORMS),
        lambda: chance.choice(CONTROL),
        lambda: chance.choice([*SPECIAL, *special]),
        lambda: random_code_point(chance),
        lambda: "".join(random_code_point(chance) for _ in range(chance.randint(1, 12))),
        lambda: chance.choice([*"aZ0 \n'.é字😀", *WHITE_SPACE]) * chance.randint(2, 300),
        lambda: str(chance.getrandbits(chance.randint(1, 90))),
    ]
    if chance.random() < 0.2:
        kinds = [chance.choice(kinds)]
    return "".join(chance.choice(kinds)() for _ in range(chance.randint(1, 15)))


def strings(count, seed, special=()):
    chance = random.Random(seed)
    fixed = ["", *WHITE_SPACE, *CONTRACTIONS, *EMOJI, *MARKS, *FORMS, *CONTROL, *WORDS, *SPECIAL, *special]
    fixed += [f"a{space}{other}b" for space in WHITE_SPACE for other in WHITE_SPACE]
    fixed += [f"x{contraction}y {contraction} {contraction.upper()}" for contraction in CONTRACTIONS]
    return fixed + [random_string(chance, special) for _ in range(count)]

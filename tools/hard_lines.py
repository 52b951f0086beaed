"""A seeded list of lines that tokenisers find hard: scripts, emoji, code, spaces, broken UTF-8."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

SENTENCES = [
    "The quick brown fox doesn't jump; it's we'll, they've, I'M and SHE'LL over 12 lazy dogs.",
    "Größenwahn: Äpfel, Öl und Übermut kosten 3,50 € – täglich außer Straßenfest.",
    "L'été dernier, où étaient-ils? À Noël, ça coûtait déjà 1 234,56 €.",
    "¿Cuántos años tenía el pingüino? ¡Nadie lo sabía, señor!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Θέλω 5 καφέδες!",
    "いろはにほへと ちりぬるを。東京都は人口1400万人です。ｶﾀｶﾅとＡＢＣ１２３",
    "我能吞下玻璃而不伤身体。繁體中文也一樣，價格是¥99.5。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني. ١٢٣٤٥",
    "אני יכול לאכול זכוכית וזה לא מזיק לי. שָׁלוֹם",
    "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती। ०१२३",
    "நான் கண்ணாடி சாப்பிடுவேன், அதனால் எனக்கு ஒரு கேடும் வராது.",
    "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ ๑๒๓",
    "ខ្ញុំអាចញុំកញ្ចក់បាន ដោយគ្មានបញ្ហា",
    "མི་མང་ཚང་མ་གཅིག་མཚུངས་རེད། ཤེལ་སྒོ་ཟ་ནས་ང་ན་གི་མ་རེད།",
    "ሰው እንደቤቱ እንጅ እንደ ጉረቤቱ አይተዳደርም።",
    "ᏥᏌ ᎦᎶᏁᏛ ᎠᏴ ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "მინას ვჭამ და არა მტკივა. Կրնամ ապակի ուտել",
    "Tôi có thể ăn thủy tinh mà không hại gì. Đẹp quá!",
    "𝓜𝓪𝓽𝓱 𝕓𝕠𝕝𝕕 𝟏𝟐𝟑 ∑∫√∞ ≠ ≤ ≥ ∀x∈ℝ: ⌈x⌉ ≥ x ½ ² ³ Ⅷ ①",
    "𐍈𐌰𐌽 𒀭𒈾 𓂀𓃭 𐤀𐤁 𝄞♯♭ 🀄🂡",
    "السلام עליכם mixed דת with English and 123 עברית 456 عربي",
]
EMOJI = [
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇯🇵", "❤️", "☺", "👨🏿‍🚀", "1️⃣", "🏴\U000e0067\U000e0062"
    "\U000e0073\U000e0063\U000e0074\U000e007f", "🤷‍♀️", "🧑‍💻", "⌚️", "©️", "🫠", "\ufe0f", "\u200d",
]  # fmt: skip
CODE = [
    "def f(x: int) -> int:\n\treturn x**2 if x != 0 else -1  # noqa: E501",
    'for (int i = 0; i < n; ++i) { printf("%d\\n", a[i]); }',
    '{"key": [1, 2.5e-10, null, true], "nested": {"a": "b\\u00e9"}}',
    "SELECT * FROM users WHERE name LIKE '%o''brien%' AND id >= 1000;",
    '<div class="a b" id=\'x\'>&nbsp;&lt;3</div><!-- comment -->',
    "git commit -am 'fix' && rm -rf ./build/*.o || exit $?",
    "const f = async ({a, ...b}) => await g?.(a ?? `${b}`);",
    "0xDEADBEEF 0b1010 1_000_000 3.14159265358979 -1e+308 v1.2.3-rc.4+build",
    "https://example.com/a/b?c=d&e=%20f#frag user.name+tag@mail.example.co.uk",
    "\\begin{equation} e^{i\\pi} + 1 = 0 \\end{equation}",
    "#include <stdio.h>\r\n\r\nint main(void)\r\n{\r\n    return 0;\r\n}\r\n",
    "\t\tif err != nil {\n\t\t\treturn nil, fmt.Errorf(\"x: %w\", err)\n\t\t}\n",
]  # fmt: skip
CONTROL_WORDS = [
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "< |im_start| >", "<|im_start|",
    "<repo_name>", "<file_sep>x<filename>y", "<gh_stars>10", "<jupyter_start>", "<empty_output>",
]  # fmt: skip
SPACES = [
    " ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680",
    "\u180e", "\u2003", "\u2028", "\u2029", "\u200b", "\u202f", "\u205f", "\u3000", "\ufeff",
]  # fmt: skip
LOST_BYTES = ["\U00042019\U00042026b", "\U000b0019 \U000b0026\U000b0019", "1\U00080019\U00080019"]
"""SmolLM2 has no token for the first byte of these characters, and drops it."""

BLOCKS = [
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530), (0x590, 0x700),
    (0x900, 0xE00), (0xE00, 0x1000), (0x1100, 0x1200), (0x13A0, 0x1400), (0x2000, 0x2C00),
    (0x3000, 0x3400), (0x4E00, 0x9FFF), (0xA960, 0xAA00), (0xAC00, 0xD7A4), (0xE000, 0xE100),
    (0xFB00, 0x10000), (0x10000, 0x10400), (0x1D400, 0x1D800), (0x1F000, 0x1FB00),
    (0x20000, 0x20100), (0xE0000, 0xE0080), (0x10FF00, 0x110000),
]  # fmt: skip
WORDS = [
    "the", "of", "and", "don't", "I'll", "naïve", "co-operate", "HTTP2", "x86_64", "e.g.", "...",
    "?!", "--", "Ω", "42", "3D", "O'Neil",
]  # fmt: skip


def hard_lines(seed: int = 0) -> list[str]:
    """At least 1,000 distinct lines; the same for the same seed (and Python's Unicode version)."""
    rng = random.Random(seed)
    lines = ["", *SENTENCES, *EMOJI, *CODE, *CONTROL_WORDS, *SPACES, *LOST_BYTES]
    lines += [unicodedata.normalize(form, s) for form in ("NFD", "NFKC") for s in SENTENCES]
    lines += [change(s) for change in (str.upper, str.title, str.swapcase) for s in SENTENCES]
    makers: list[tuple[int, Callable[[random.Random], str]]] = [
        (250, scattered), (120, spaced), (100, digits), (100, emoji), (80, combining),
        (120, broken), (40, surrogates), (60, long_word), (60, controls), (80, mixed), (40, code),
    ]  # fmt: skip
    for count, make in makers:
        lines += [make(rng) for _ in range(count)]
    return list(dict.fromkeys(lines))


def scattered(rng: random.Random) -> str:
    """Code points of one or two blocks, with spaces between some."""
    blocks = rng.sample(BLOCKS, rng.choice([1, 1, 2]))
    return "".join(
        " " if rng.random() < 0.15 else chr(rng.randrange(*rng.choice(blocks)))
        for _ in range(rng.randrange(3, 40))
    )


def spaced(rng: random.Random) -> str:
    """Words apart by runs of any white space, at the ends too."""
    pieces = []
    for _ in range(rng.randrange(2, 8)):
        run = rng.choice(SPACES) * rng.choice([1, 1, 2, 3, 7, 16])
        pieces += [run + rng.choice(["", rng.choice(SPACES)]), rng.choice(WORDS)]
    return "".join(pieces[rng.randrange(2) :]) + rng.choice(SPACES) * rng.randrange(4)


def digits(rng: random.Random) -> str:
    """Numbers in ASCII and other scripts' digits, fractions and numerals."""
    zeros = ["0", "\u0660", "\u0966", "\uff10", "\u0e50", "\U0001d7ce"]
    pieces = []
    for _ in range(rng.randrange(1, 6)):
        zero = ord(rng.choice(zeros))
        number = "".join(chr(zero + rng.randrange(10)) for _ in range(rng.randrange(1, 12)))
        pieces.append(number + rng.choice(["", " ", ".", ",", "½", "²", "Ⅷ", "①", "万", "px", "-"]))
    return rng.choice(["", " ", "x"]) + "".join(pieces)


def emoji(rng: random.Random) -> str:
    """Emoji in sequences, some joined, some broken up."""
    parts = [rng.choice([*EMOJI, " ", "a"]) for _ in range(rng.randrange(1, 12))]
    return rng.choice(["", "\u200d"]).join(parts)


def combining(rng: random.Random) -> str:
    """Letters under piles of combining marks."""
    return "".join(
        rng.choice("aeioun AEZ") + "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(marks))
        for marks in (rng.choice([0, 1, 1, 2, 9]) for _ in range(rng.randrange(2, 12)))
    )


def broken(rng: random.Random) -> str:
    """UTF-8 with bytes cut out, changed or invented, decoded with errors="replace"."""
    data = bytearray(rng.choice([*SENTENCES, *EMOJI]).encode())
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            data[at : at + 1] = b""
        else:
            data[at:at] = bytes([rng.randrange(0x80, 0x100)])
    return data.decode(errors="replace")


def surrogates(rng: random.Random) -> str:
    """A sentence with lone surrogates, as "surrogateescape" and UTF-16 leave them."""
    text = list(rng.choice(SENTENCES))
    for _ in range(rng.randrange(1, 4)):
        text.insert(rng.randrange(len(text) + 1), chr(rng.randrange(0xD800, 0xE000)))
    return "".join(text)


def long_word(rng: random.Random) -> str:
    """One very long word: repeated, random or punctuation."""
    kind = rng.randrange(4)
    size = rng.randrange(100, 1200)
    if kind == 0:
        return rng.choice(["a", "ab", "-", "=", "ha", "é", "我", "\u0301", "0"]) * size
    if kind == 1:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(size))
    if kind == 2:
        return "".join(rng.choice("!?.,;:-_/\\|@#$%^&*()[]{}<>'\"`~+=") for _ in range(size))
    return "".join(rng.choice("ACGT") for _ in range(size)) + " " + "Donaudampfschiff" * 9


def controls(rng: random.Random) -> str:
    """ASCII and C1 control characters, and noncharacters, among words."""
    codes = [*range(0x20), 0x7F, *range(0x80, 0xA0), 0xFFFE, 0xFFFF, 0xFDD0, 0x1FFFF]
    parts = [
        rng.choice([*WORDS, " "]) + chr(rng.choice(codes)) for _ in range(rng.randrange(1, 10))
    ]
    return "".join(parts)


def mixed(rng: random.Random) -> str:
    """Slices of different sentences run together, control words among them."""
    pieces = []
    for _ in range(rng.randrange(2, 6)):
        source = rng.choice([*SENTENCES, *CODE, *EMOJI, *CONTROL_WORDS])
        start = rng.randrange(len(source))
        pieces.append(source[start : start + rng.randrange(1, 25)])
    return rng.choice(["", " ", "\n", "'"]).join(pieces)


def code(rng: random.Random) -> str:
    """Lines of code, indented."""
    indent = rng.choice([" ", "  ", "    ", "\t"]) * rng.randrange(1, 5)
    return "\n".join(
        indent * rng.randrange(3) + rng.choice(CODE) for _ in range(rng.randrange(1, 4))
    )

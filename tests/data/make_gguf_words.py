"""Makes gguf_words.json: awkward texts, and the ids that llama.cpp gives them by each rule.

Run in an environment of its own, from the project's root:

    pip install xllamacpp==2026.10.11549 -e .[dev,cpu]
    PYTHONPATH=tests python tests/data/make_gguf_words.py

The vocabulary is trained on the texts without cutting them into words, so that wherever a rule
cuts, ids change. Left out are texts with combining marks: by two of the rules, llama.cpp cuts them
otherwise than the tokenizers that the rules are from; and the ideographic space, by two others.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from importlib import metadata
from pathlib import Path

import xllamacpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from kit.gguf_files import write_model
from segue.gguf.words import WORDS

TEXTS = [
    "Hello, world! How's it going? I'LL see; we've DONE it, don't you?",
    "a1b22c333d4444 55555 666666 1234567 12 345 00001 ",
    "3.14159 1,000,000.50 $5.00 +3 <=> ^^ ~~ |x| `code` 100% 25°C ½ ² ٣٤५６",
    "HelloWorld fooBar XMLHttpRequest iPhone ÉCOLE Straße naïve ǅ ΑΒΓ αβγ Привет",
    "  two   three    four\ttab\t\tend  ",
    "line\nline\n\nline\n\n\n  indented\r\n\r\n x \n \n",
    "x/y//z\n/\n\nq C:\\dir\\file.txt https://example.org/a?b=c&d#e",
    "#!/bin/sh -x\nfor (i = 0; i < n; ++i) { a[i] += b[i]; }\n_under_ __dunder__ .hidden ..",
    "中文字符和English混合123，。日本語テキスト、です。한국어 텍스트！",
    "שלום مرحبا ქართული አማርኛ",
    "😀👍🏽 “quoted” — dash – ‘single’ …dots…",
    "\u00a0no-break \u200bzero",
    "𝔘𝔫𝔦 𝟙𝟚𝟛 ∀x∈ℝ: x² ≥ 0 ⇒ √x",
    "'s 't 're 'VE rock'n'roll \"double\" (foo) [bar] {baz}",
]
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def vocabulary() -> dict[str, list]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # A word that merges don't reach: some rules take it whole.
    return {
        "tokens": [*sorted(model["vocab"], key=model["vocab"].__getitem__), "\u0120going"],
        "merges": [" ".join(pair) for pair in model["merges"]],
    }


def ids(server: xllamacpp.Server, text: str) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": True}
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def recorded() -> dict[str, object]:
    made = vocabulary()
    rules = {words: name for name, words in reversed(WORDS.items())}
    by_rule = {}
    for rule in reversed(rules.values()):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "words.gguf"
            types = [3] * len(SPECIAL) + [1] * (len(made["tokens"]) - len(SPECIAL))
            told = {**made, "token_type": types, "pre": rule, "eos_token_id": 1}
            write_model(path, tokens={"model": "gpt2", **told})
            params = xllamacpp.CommonParams()
            params.model.path = str(path)
            params.n_ctx = 256
            params.warmup = False
            server = xllamacpp.Server(params)
            by_rule[rule] = [ids(server, text) for text in TEXTS]
            del server
    version = metadata.version("xllamacpp")
    tokenizer = f"llama.cpp, through xllamacpp {version}"
    return {"tokenizer": tokenizer, "texts": TEXTS, **made, "ids": by_rule}


def main() -> None:
    pairs = recorded().items()
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
    Path(__file__).with_name("gguf_words.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()

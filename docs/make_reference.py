"""Writes docs/reference.md from the docstrings of the public names."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path

import griffe
from griffe2md import ConfigDict, default_config, render_object_docs

TARGET = Path(__file__).with_name("reference.md")

# The public names, in the order of their use; and the protocols for those who write an engine. A
# module stands for its classes.
PUBLIC = [
    "loading.load",
    "mlx.engine.MlxEngine",
    "session.ChatSession",
    "turn.reply.Reply",
    "response.GenerationResponse",
    "response.FinishReason",
    "response.TextKind",
    "messages.Message",
    "messages.Role",
    "config.GenerationConfig",
    "config.SpeculativeDecodingConfig",
    "store.prompt_cache.load_prompt_cache",
    "store.prompt_cache.PromptCache",
    "store.session_file.SessionFile",
    "usage",
    "errors",
    "engine",
    "testing.fake.FakeEngine",
    "testing.fake.ScriptedModel",
    "testing.tokenizer.ToyTokenizer",
]


def render() -> str:
    """The reference as Markdown."""
    package = griffe.load(
        "segue", search_paths=[str(TARGET.parent.parent)], docstring_parser="google"
    )
    config: ConfigDict = {
        **default_config,
        "heading_level": 2,
        "show_signature_annotations": True,
        "separate_signature": True,
        "members_order": "source",
        "show_root_full_path": False,
        "show_object_full_path": False,
        "show_if_no_docstring": False,
        "summary": False,
    }
    parts = ["# API reference\n\nGenerated from the docstrings by `make docs`.\n"]
    for name in PUBLIC:
        # What a session is at any moment, a room of its own tells.
        config["inherited_members"] = name == "session.ChatSession"
        parts += [render_object_docs(shown, config) for shown in named(package[name])]
    # Types come as links to places that a single page does not have.
    text = re.sub(r"\[([^\[\]]+)\]\(#[^)]*\)", r"\1", "\n".join(parts))
    text = re.sub(r"<code>(.*?)</code>", lambda code: f"`{unescape(code[1])}`", text)
    text = re.sub(r"^(#+) `segue\.[a-z_.]+\.([A-Z])", r"\1 `\2", text, flags=re.MULTILINE)
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines).strip() + "\n"


def named(shown: griffe.Object) -> list[griffe.Object]:
    """The object itself, or a module's own classes in the order of its source."""
    if not shown.is_module:
        return [shown]
    return [value for value in shown.classes.values() if not value.is_alias]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(render() != TARGET.read_text())
    TARGET.write_text(render())

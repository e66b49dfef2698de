"""Writes docs/reference.md from the docstrings of the public names."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path

import griffe
from griffe2md import ConfigDict, default_config, render_object_docs

TARGET = Path(__file__).with_name("reference.md")

# Chapters: the package that programs import the names from, an introduction, and the objects, in
# the order of their use. A module stands for its own classes and functions.
CHAPTERS: dict[str, tuple[str, str, list[str]]] = {
    "Models": ("segue", "", ["loading.load", "mlx.engine.MlxEngine"]),
    "Sessions": (
        "segue",
        "",
        [
            "session.ChatSession",
            "turn.reply.Reply",
            "response.GenerationResponse",
            "response.FinishReason",
            "response.TextKind",
        ],
    ),
    "Settings": ("segue", "", ["config.GenerationConfig", "config.CacheConfig"]),
    "Messages": (
        "segue",
        "",
        [
            "messages.Message",
            "messages.Role",
            "messages.Text",
            "tool_call.ToolCall",
            "conversation.Conversation",
        ],
    ),
    "Forms of answers": ("segue", "", ["grammar.schema.Regex", "grammar.schema.Lark"]),
    "Costs": ("segue", "", ["usage"]),
    "Files": (
        "segue",
        "",
        [
            "store.session_file.SessionFile",
            "store.prompt_cache.load_prompt_cache",
            "prompt_cache.PromptCache",
        ],
    ),
    "Errors": ("segue", "{tree}", ["errors"]),
    "Engines": (
        "segue.engine",
        "For those who write an engine: a small core (`Engine`, `Context`, `Tokenizer`), and what "
        "else an engine may offer. [An example](../examples/own_engine.py) is the smallest one.",
        [
            "engine",
            "tokenizer.Tokenizer",
            "tokenizer.Detokenizer",
            "tokenizer.ControlTokens",
            "tokenizer.WritesDate",
            "recommended.Recommends",
        ],
    ),
    "Testing": (
        "segue.testing",
        "Stand-ins for models: no MLX, no downloads.",
        [
            "testing.fake.FakeEngine",
            "testing.fake.FakeContext",
            "testing.bare.BareEngine",
            "testing.bare.BareContext",
            "testing.script.ScriptedModel",
            "testing.tokenizer.ToyTokenizer",
            "testing.tokenizer.ToyDetokenizer",
        ],
    ),
}

HEAD = """\
# API reference

Generated from the docstrings by `make docs`. Names are public in the package of their heading.
"""

# The table of contents names the objects of a chapter that has no more than these.
MOST_LINKS = 9
LONGEST_LINE = 100

# A docstring that only points to the protocol that it implements, and what it adds to that.
POINTER = re.compile(r"See `segue\.([\w.]+)`(?:[.;:](.*))?", re.DOTALL)


def render() -> str:
    """Return the reference as Markdown."""
    package = griffe.load(
        "segue", search_paths=[str(TARGET.parent.parent)], docstring_parser="google"
    )
    config: ConfigDict = {
        **default_config,
        "heading_level": 3,
        "show_signature_annotations": True,
        "separate_signature": True,
        "members_order": "source",
        "show_root_full_path": False,
        "show_root_members_full_path": False,
        "show_object_full_path": False,
        "show_if_no_docstring": False,
        "show_bases": False,
        "summary": False,
    }
    shown = {
        title: [found for path in paths for found in named(package[path])]
        for title, (_, _, paths) in CHAPTERS.items()
    }
    for found in [found for objects in shown.values() for found in objects]:
        for member in [found, *found.members.values()]:
            complete(member, package)
    contents, chapters = [], []
    for title, (public, introduction, _) in CHAPTERS.items():
        objects = shown[title]
        links = [f"[`{found.name}`](#{anchor(public, found.name)})" for found in objects]
        names = f": {', '.join(links)}" if len(links) <= MOST_LINKS else ""
        contents.append(f"- [{title}](#{title.lower()}){names}")
        chapters.append(f"## {title}\n")
        if introduction:
            chapters.append(introduction.format(tree=tree_of(package["errors"])) + "\n")
        for found in objects:
            if found.is_class:
                gather_fields(found)
            chapters.append(with_public_names(render_object_docs(found, config), public, found))
    return "\n".join([HEAD, *contents, "", tidied("\n".join(chapters))])


def named(found: griffe.Object) -> list[griffe.Object]:
    """Return the object itself, or a module's own classes and exported functions."""
    if not found.is_module:
        return [found]
    exported = [str(name) for name in found.exports or ()]
    return [
        member
        for member in found.members.values()
        if not member.is_alias
        and not member.name.startswith("_")
        and (member.is_class or (member.is_function and member.name in exported))
    ]


def anchor(public: str, name: str) -> str:
    """Return the anchor that GitHub gives to the heading of a name."""
    return f"{public}.{name}".replace(".", "").lower()


def tree_of(errors: griffe.Object) -> str:
    """Return the tree of errors, which the module's docstring draws."""
    _, _, tree = errors.docstring.value.partition("::\n\n")
    return f"```text\n{re.sub('^    ', '', tree, flags=re.MULTILINE).rstrip()}\n```"


def complete(found: griffe.Object | griffe.Alias, package: griffe.Module) -> None:
    """Complete a docstring: with the protocol's own if it points to one, and with fences."""
    if found.is_alias or found.docstring is None:
        return
    text = found.docstring.value
    match = POINTER.fullmatch(text)
    if match is not None:
        path, more = match[1], (match[2] or "").strip()
        text = package[path].docstring.value
        if more:
            # After the summary: sections such as Args come last.
            summary, gap, rest = text.partition("\n\n")
            text = f"{summary}\n\n{more[0].upper()}{more[1:]}{gap}{rest}"
    found.docstring.value = fenced(text)


def fenced(text: str) -> str:
    """Return a docstring with its examples in fences; Markdown would take them for quotations."""
    text = text.replace("Raises (while iterating):", "Raises:")
    return re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)


def gather_fields(found: griffe.Object) -> None:
    """Move the fields and properties of a class into its docstring, as a list."""
    if found.docstring is not None and "Made by `" in found.docstring.value:
        # Programs don't call it.
        found.members.pop("__init__", None)
    fields = [
        member
        for member in found.members.values()
        if member.is_attribute and not member.name.startswith("_") and member.docstring is not None
    ]
    if not fields or found.docstring is None:
        return
    items = [
        griffe.DocstringAttribute(
            name=field.name,
            annotation=field.annotation,
            description=field.docstring.value.replace("\n\n", "\n"),
            value=None,
        )
        for field in fields
    ]
    for field in fields:
        del found.members[field.name]
    for section in found.docstring.parsed:
        if isinstance(section, griffe.DocstringSectionAttributes):
            section.value += items
            return
    found.docstring.parsed.append(griffe.DocstringSectionAttributes(items))


def with_public_names(text: str, public: str, found: griffe.Object) -> str:
    """Have the headings name an object as programs import it, and its methods by their class."""
    text = text.replace(f"### `{found.name}`", f"### `{public}.{found.name}`", 1)
    return re.sub(r"^#### `", f"#### `{found.name}.", text, flags=re.MULTILINE)


def wrapped(signature: str) -> str:
    """Return a signature with each of its arguments on a line, if it is too long for one."""
    if len(signature) <= LONGEST_LINE or "(" not in signature:
        return signature
    start = signature.index("(") + 1
    lines, depth, begin = [signature[:start]], 0, start
    for index in range(start, len(signature)):
        letter = signature[index]
        if depth == 0 and letter in ",)":
            lines.append(f"    {signature[begin:index].strip()},")
            begin = index + 1
        if letter == ")" and depth == 0:
            return "\n".join([*lines, signature[index:]])
        depth += (letter in "([{") - (letter in ")]}")
    raise ValueError(f"brackets don't match: {signature}")


def tidied(text: str) -> str:
    """Return Markdown without links inside the page, stray tags and white space."""
    # Types come as links to anchors that a single page does not have.
    text = re.sub(r"\[([^\[\]]+)\]\(#[^)]*\)", r"\1", text)
    text = re.sub(r"<code>(.*?)</code>", lambda code: f"`{unescape(code[1])}`", text)
    text = re.sub(r"(?<=```python\n).+(?=\n)", lambda line: wrapped(line[0]), text)
    lines = [line.rstrip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(render() != TARGET.read_text(encoding="utf-8"))
    TARGET.write_text(render(), encoding="utf-8")

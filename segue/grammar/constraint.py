"""The grammar of a whole reply: thoughts as they come, and an answer of a given form.

How it works: a model that thinks must be free to do so, or it answers worse; so the rules of the
answer come after rules for the thought, in the model's own tags. The forms `%token` and `%until` in
these rules stand for tags that may be tokens or text (see `masking/matcher.py`).

What does not work: beginning to constrain when the answer begins. Drafts and forced tokens may be
proposed across that border, and masks must be right for each of them.
"""

from __future__ import annotations

import json
from typing import Any

from ..engine import Engine, Grammars
from ..errors import UnsupportedFeatureError
from ..text.form import ReplyForm
from .schema import Answer, answer_of

# What some models write between a thought and the answer.
BETWEEN = r"/\n{0,2}/"


def asked_form(engine: Engine, schema: object) -> Answer[Any] | None:
    """Return the form of an answer that a caller asks for.

    Args:
        engine: The model.
        schema: See `answer_of`; ``None`` for an answer in words.

    Raises:
        ConfigurationError: if it is no form.
        UnsupportedFeatureError: if the engine can't hold a reply to one.
    """
    if schema is None:
        return None
    if not isinstance(engine, Grammars):
        raise UnsupportedFeatureError(
            engine.name, "answers of a given form", remedy="Leave schema out."
        )
    return answer_of(schema)


def reply_grammar(rules: str, form: ReplyForm, *, opened: bool) -> str:
    """Return the grammar of a reply.

    Args:
        rules: Those of the answer; it matches the rule ``answer``.
        form: How the reply is written.
        opened: True if the prompt has opened the reasoning.
    """
    if form.harmony:
        return f"{_harmony()}\n{rules}"
    start, end = "", ""
    if form.wrapping is not None and form.wrapping.rendered:
        start, end = (_token(text) for text in (form.wrapping.start, form.wrapping.end))
    wrapped = f"{start} answer {end}".strip()
    if form.tags is None:
        return f"start: {wrapped}\n{rules}"
    first, last = form.tags
    thought = f"thought: %until {json.dumps(last)}"
    if opened:
        return f"start: thought between {wrapped}\n{thought}\nbetween: {BETWEEN}\n{rules}"
    return (
        f"start: (before {_token(first)} thought between)? {wrapped}\n"
        f"before: {BETWEEN}\n{thought}\nbetween: {BETWEEN}\n{rules}"
    )


def _harmony() -> str:
    """Return rules for a reply in channels: any number of thoughts, then the answer."""
    channel, message = _token("<|channel|>"), _token("<|message|>")
    following = f'{_token("<|start|>")} "assistant"'
    return (
        f'start: thought* {channel} "final" {message} answer\n'
        f'thought: {channel} "analysis" {message} said {following}\n'
        'said: %until "<|end|>"'
    )


def _token(text: str) -> str:
    return f"%token {json.dumps(text, ensure_ascii=False)}" if text else ""

"""Which tokens steer a model: found by rendering its chat template, no table of models.

How it works: a few conversations are rendered whose contents are known words. What the template
writes around those is structure, and the control tokens in it say what they are for:

- *The end of a turn* is what comes after a reply both at the end of a conversation and before the
  next question. Folders often name another end of text as their eos, and then the model talks on in
  the person's name. Where a template writes nothing at the end of a turn, what begins the next turn
  ends the reply.
- *Tokens of replies* are those around a call of a tool, around reasoning and around the answer,
  which a model samples in the middle of its reply; and those that the template never writes. All
  others bound turns, and no reply holds them.

What does not work:

- Taking the token right after a reply. gpt-oss writes ``<|end|>`` there, which ends one message of
  several; and templates wrap answers (``<|END_RESPONSE|>``).
- Taking whatever the template ends a conversation with: some write an end of text after all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

from ..errors import TemplateError
from ..ledger import common_prefix

Render = Callable[[Sequence[Mapping[str, Any]], bool, Mapping[str, Any]], str]
"""``(messages, add_generation_prompt, template_kwargs) -> text``; raises TemplateError."""

# Words that no template writes.
ASKED, SAID, ASKED_NEXT = "Qzkxq", "Azkxa", "Nzkxn"
CALLED, ARGUMENT, CALL_ID = "czkxc", "vzkxv", "zkxzkxzkx"
TOOL = {
    "type": "function",
    "function": {
        "name": CALLED,
        "description": "Does nothing.",
        "parameters": {
            "type": "object",
            "properties": {"k": {"type": "string", "description": "Any."}},
            "required": ["k"],
        },
    },
}
# gpt-oss writes several messages in a reply, and ends it by one of two tokens.
SEVERAL_MESSAGES = frozenset({"<|start|>", "<|channel|>", "<|message|>", "<|end|>"})
ENDS_OF_SEVERAL = ("<|return|>", "<|call|>")
# Texts that end a reply in any case, as in llama.cpp.
END_OF_GENERATION = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
)
# What begins and ends texts in other vocabularies: no reply holds it, named by the folder or not.
BOUNDS_OF_TEXT = frozenset(
    {*END_OF_GENERATION, "<s>", "</s>", "<bos>", "<eos>", "<|begin_of_text|>"}
)
# Tokens that are not special, but that templates write, look so.
BRACKETED = re.compile(r"[<\[{].+[>\]}]", re.DOTALL)


def control_tokens(added: Mapping[int, Any], sources: Sequence[str]) -> dict[str, int]:
    """Return the text of each control token, and its id.

    Args:
        added: A vocabulary's added tokens, by id.
        sources: What the chat template may write: a token in it is a control token even if the
            vocabulary does not call it special.
    """
    return {
        token.content: index
        for index, token in added.items()
        if token.content.strip()
        and (
            token.special
            or (
                BRACKETED.fullmatch(token.content)
                and any(token.content in source for source in sources)
            )
        )
    }


class TemplateTokens:
    """What a chat template uses a vocabulary's control tokens for.

    Args:
        tokens: The control tokens and their ids.
        render: Renders the template.
        reasoning: The tags around reasoning, and other texts of replies.
    """

    def __init__(
        self, tokens: Mapping[str, int], render: Render, reasoning: Sequence[str] = ()
    ) -> None:
        self._tokens = tokens
        self._render = render
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._thought = {token for text in reasoning for token in self._in(text)}

    def ends(self, known: AbstractSet[int]) -> set[int]:
        """Return the ids that end turns besides those that are known to end replies."""
        if self._tokens.keys() >= SEVERAL_MESSAGES:
            return {self._tokens[end] for end in ENDS_OF_SEVERAL if end in self._tokens}
        for content, kwargs in _attempts():
            asked = _message("user", content(ASKED))
            said = _message("assistant", content(SAID))
            next_one = _message("user", content(ASKED_NEXT))
            between = self._between(
                self._try([asked, said, next_one], True, kwargs), SAID, ASKED_NEXT
            )
            if between is None:
                continue
            whole = self._try([asked, said], False, kwargs)
            last = self._between(whole, SAID, None)
            # Some write the beginning of a reply whether that is wanted or not.
            begun = whole == self._try([asked, said], True, kwargs)
            ends = self._end(between, last, known, begun=begun)
            if ends is None:
                return set()
            # What closes an answer that the model itself opens is not yet the end.
            opened = self._unthought(self._between(whole, ASKED, SAID))
            prompt = self._unthought(self._between(self._try([asked], True, kwargs), ASKED, None))
            closing = len(opened) - len(prompt) if opened[: len(prompt)] == prompt else 0
            return {self._tokens[ends[min(closing, len(ends) - 1)]]}
        return set()

    def _end(
        self, between: str, last: str | None, known: AbstractSet[int], *, begun: bool
    ) -> list[str] | None:
        """Return the tokens that end a turn; ``None`` if there are none, or one is known."""
        following = self._in(between)
        ending = following[:1] if last is None else self._in(last)
        # Turns end alike everywhere, or the last one otherwise, or where the next one begins.
        alike = common_prefix(self._ids(following), self._ids(ending))
        found = following[:alike] or ([] if begun else ending)
        if not found and following and between.lstrip().startswith(following[0]):
            found = following[:1]
        if any(self._tokens[token] in known for token in found):
            return None
        return [token for token in found if token not in self._thought] or None

    def _unthought(self, text: str | None) -> list[str]:
        return [token for token in self._in(text or "") if token not in self._thought]

    def in_replies(self, ends: AbstractSet[int], written: AbstractSet[str]) -> set[str]:
        """Return the control tokens that a reply may hold.

        Args:
            ends: The ids that end replies.
            written: The tokens that the template may write, and those that have a role.
        """
        bounds = SEVERAL_MESSAGES if self._tokens.keys() >= SEVERAL_MESSAGES else frozenset()
        structure: set[str] = set(bounds)
        written, calls = set(written), set(self._thought) - bounds
        for text in _rendered(self._render, _talks()):
            written |= set(self._in(text))
            if CALLED not in text and SAID in text:
                structure |= set(self._in(text.split(ASKED, 1)[-1]))
        for text in _rendered(self._render, _calls(), prompt=False):
            calling = self._between(text, ASKED, None)
            if calling is not None and CALLED in calling:
                calls |= set(self._in(calling)) - structure
        calls |= self._around_answers() - bounds
        found = calls | (set(self._tokens) - written - BOUNDS_OF_TEXT)
        return {token for token in found if self._tokens[token] not in ends}

    def _around_answers(self) -> set[str]:
        """Return the tokens that a model writes around its answer, as the template does."""
        for content, kwargs in _attempts():
            asked, said = _message("user", content(ASKED)), _message("assistant", content(SAID))
            talk = [asked, said, _message("user", content(ASKED_NEXT))]
            text = self._try(talk, True, kwargs)
            if text is None:
                continue
            prompt = self._unthought(self._between(self._try([asked], True, kwargs), ASKED, None))
            opened = self._unthought(self._between(text, ASKED, SAID))
            if opened[: len(prompt)] != prompt:
                return set()
            openers = opened[len(prompt) :]
            closers = self._in(self._between(text, SAID, ASKED_NEXT) or "")[: len(openers)]
            return {*openers, *closers}
        return set()

    def _try(
        self, messages: Sequence[Mapping[str, Any]], prompt: bool, kwargs: Mapping[str, Any]
    ) -> str | None:
        try:
            return self._render(messages, prompt, kwargs)
        except TemplateError:
            return None

    def _between(self, text: str | None, before: str, after: str | None) -> str | None:
        if text is None or before not in text:
            return None
        rest = text.rsplit(before, 1)[1]
        if after is None:
            return rest
        return rest.split(after, 1)[0] if after in rest else None

    def _ids(self, tokens: Sequence[str]) -> list[int]:
        return [self._tokens[token] for token in tokens]

    def _in(self, text: str) -> list[str]:
        return self._pattern.findall(text)


def written_by(render: Render) -> list[str]:
    """Return what a template makes of conversations of every kind."""
    return list(_rendered(render, _talks()))


def _rendered(
    render: Render,
    talks: Iterable[tuple[list[dict[str, Any]], Mapping[str, Any]]],
    *,
    prompt: bool = True,
) -> Iterator[str]:
    """Yield what a template makes of conversations, but for those that it refuses."""
    for messages, kwargs in talks:
        with suppress(TemplateError):
            yield render(messages, prompt, kwargs)


def _talks() -> Iterator[tuple[list[dict[str, Any]], Mapping[str, Any]]]:
    """Yield conversations in which everybody speaks, and the template's arguments for each."""
    for content, kwargs in _attempts():
        talk = [
            _message("user", content(ASKED)),
            _message("assistant", content(SAID)),
            _message("user", content(ASKED_NEXT)),
        ]
        yield talk, kwargs
        yield [_message("system", content(ASKED)), *talk], kwargs
    for calling, kwargs in _calls():
        result = {**_message("tool", SAID), "name": CALLED, "tool_call_id": CALL_ID}
        yield [*calling, result], kwargs


def _calls() -> Iterator[tuple[list[dict[str, Any]], Mapping[str, Any]]]:
    """Yield conversations that end with a call of a tool: some want its arguments as text."""
    for content, _ in _attempts():
        for arguments in ({"k": ARGUMENT}, json.dumps({"k": ARGUMENT})):
            function = {"name": CALLED, "arguments": arguments}
            call = {"type": "function", "id": CALL_ID, "function": function}
            calling = {"role": "assistant", "content": "", "tool_calls": [call]}
            yield [_message("user", content(ASKED)), calling], {"tools": [TOOL]}


def _attempts() -> Iterator[tuple[Callable[[str], Any], Mapping[str, Any]]]:
    """Yield forms of contents, and arguments: some want parts, some fail without tools."""
    attempts: tuple[dict[str, Any], ...] = ({}, {"tools": []})
    for kwargs in attempts:
        yield str, kwargs
        yield _as_parts, kwargs


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}

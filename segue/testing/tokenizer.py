"""A small byte-level tokenizer with a chat template."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ..errors import TemplateError

BYTES = 256
START = "<|start|>"
END = "<|end|>"


class ToyTokenizer:
    r"""Bytes, a few words and special tokens; implements `segue.engine.Tokenizer`.

    Ids 0 to 255 are the bytes. Text is encoded by the longest word that fits, else byte by byte;
    so ids that spell a word in pieces re-encode to others, as sampled ids of real models often
    do. The chat template writes
    ``<|start|>role\ncontent<|end|>\n`` for each message and ``<|start|>assistant\n`` at the end,
    tool calls and names included where present.

    Args:
        words: Texts that get an id of their own, in this order, from 258 on.
        roles: The roles that the template takes; others make it fail.

    Attributes:
        reasoning_tags: None: this model writes no reasoning.
        reply_tokens: Empty: no control token is part of a reply.
    """

    reasoning_tags: tuple[str, str] | None = None
    reply_tokens: frozenset[str] = frozenset()

    def __init__(
        self,
        words: Sequence[str] = ("the", "he", "hello", " world"),
        *,
        roles: Sequence[str] = ("system", "user", "assistant", "tool"),
    ) -> None:
        self.name = "the toy tokenizer"
        self.start_id, self.end_id = BYTES, BYTES + 1
        self._pieces = [bytes([value]) for value in range(BYTES)]
        self._pieces += [piece.encode() for piece in (START, END, *words)]
        self._longest_first = sorted(
            range(BYTES, len(self._pieces)), key=lambda token: -len(self._pieces[token])
        )
        self._roles = tuple(roles)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def eos_token_ids(self) -> AbstractSet[int]:
        """The id of ``<|end|>``."""
        return frozenset({self.end_id})

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """``<|start|>`` and ``<|end|>``."""
        return {START: self.start_id, END: self.end_id}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token, bytes as Latin-1 characters, and its id."""
        return {piece.decode("latin-1"): token for token, piece in enumerate(self._pieces)}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """See `segue.engine.Tokenizer.render`; `template_kwargs` are written in front, sorted."""
        parts = [f"{START}{key}\n{template_kwargs[key]}{END}\n" for key in sorted(template_kwargs)]
        for message in messages:
            if message["role"] not in self._roles:
                raise TemplateError(
                    f"The chat template of {self.name} takes no {message['role']} message.",
                    remedy=f"Use the roles {', '.join(self._roles)}.",
                )
            extra = "".join(
                f"[{key}={message[key]}]"
                for key in ("name", "tool_calls", "tool_call_id")
                if key in message
            )
            parts.append(f"{START}{message['role']}{extra}\n{message['content']}{END}\n")
        if add_generation_prompt:
            parts.append(f"{START}assistant\n")
        return "".join(parts)

    def encode(self, text: str) -> list[int]:
        """See `segue.engine.Tokenizer.encode`."""
        data, at, ids = text.encode("utf-8", "replace"), 0, []
        while at < len(data):
            token = next(
                (
                    token
                    for token in self._longest_first
                    if data.startswith(self._pieces[token], at)
                ),
                data[at],
            )
            ids.append(token)
            at += len(self._pieces[token])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `segue.engine.Tokenizer.decode`."""
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for an id that has no token."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def detokenizer(self) -> ToyDetokenizer:
        """See `segue.engine.Tokenizer.detokenizer`."""
        return ToyDetokenizer(self)


class ToyDetokenizer:
    """Withholds the bytes of an incomplete character. Implements `segue.engine.Detokenizer`."""

    def __init__(self, tokenizer: ToyTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """See `segue.engine.Detokenizer.add`."""
        return self._decoder.decode(self._tokenizer.piece(token))

    def finish(self) -> str:
        """See `segue.engine.Detokenizer.finish`."""
        return self._decoder.decode(b"", final=True)

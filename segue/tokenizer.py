"""Tokenizers as a session needs them: a part of the seam, and public as `segue.engine` has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, runtime_checkable


class Detokenizer(Protocol):
    """Turns the tokens of one reply into text as they come, never splitting a character."""

    def add(self, token: int) -> str:
        """Return the text that this token made readable; empty while a character is incomplete."""
        ...

    def finish(self) -> str:
        """Return the text still withheld. The detokenizer is used up."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, and the model's chat template."""

    @property
    def eos_token_ids(self) -> AbstractSet[int]:
        """The ids that end a reply."""
        ...

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token, as the tokenizer writes it, and its id."""
        ...

    @property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """The tags before and after the model's reasoning; ``None`` if it writes none."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """Return the conversation as the model's chat template writes it.

        Raises:
            TemplateError: if the template refuses the messages or breaks on them.
        """
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of rendered text; none are added (the template writes its own BOS)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that ids spell: special tokens written out, white space left alone.

        An id without a token spells nothing.
        """
        ...

    def detokenizer(self) -> Detokenizer:
        """Return a fresh one, for one reply."""
        ...


@runtime_checkable
class WritesDate(Protocol):
    """A tokenizer whose chat template may write the date of the day.

    If it does, `Tokenizer.render` gets the conversation's own clock among its `template_kwargs`:
    under the name ``strftime_now``, by which chat templates know it, a function that takes a format
    as ``strftime`` does and returns text. Then a conversation renders alike on any day.
    """

    @property
    def writes_date(self) -> bool:
        """True if the template asks for the date."""
        ...


@runtime_checkable
class ControlTokens(Protocol):
    """A tokenizer that can tell control tokens from text that spells them.

    A *control token* steers the model: it begins and ends messages, calls and thoughts. Its text,
    where `Tokenizer.encode` meets it whole, becomes its id; text cut in the middle of it does not.
    With this, what people and tools say holds none (see `Conversation.allow_control_tokens`).
    """

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """The text of each control token, and its id."""
        ...

    @property
    def reply_tokens(self) -> AbstractSet[str]:
        """The control tokens that a reply may hold: those around reasoning and calls of tools."""
        ...


def unknown_ids(tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    """Return those of some ids that a tokenizer has no token for.

    Embeddings are padded, and vocabularies have gaps. An id that ends replies is known in any case,
    and so are all ids of a tokenizer that does not say what it has.
    """
    known = {*tokenizer.vocabulary.values()}
    if not known:
        return []
    known |= tokenizer.eos_token_ids
    # Two ids may have one name, of which a vocabulary has the last: so what spells text is known.
    return [
        index
        for index in dict.fromkeys(ids)
        if index not in known and not _spells(tokenizer, index)
    ]


def _spells(tokenizer: Tokenizer, index: int) -> bool:
    try:
        return bool(tokenizer.decode([index]))
    except Exception:  # tokenizers differ in how they refuse an id
        return False

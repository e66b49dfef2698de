"""From a history to the ids of a prompt: render the chat template, then splice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import Tokenizer
from ..errors import TemplateError
from ..ledger import TokenLedger, common_prefix
from ..messages import Message

# How many ids in front of a join are decoded along with it. Decoders look at their neighbours (a
# first space dropped, bytes that make one character), never far.
JOIN_CONTEXT = 8
# Text that may stand in front of what is encoded, for tokenizers that put a space or BOS there.
ANCHORS = ("", "\n", "a")
# Questions that begin in all the ways that a tokenizer may join to what stands before them: the ids
# that all prompts share come before any question.
QUESTIONS = tuple(Message.user(text) for text in ("a", "B", "1", "é", ".", ")", "'s", " a", "\na"))
# What may be said after a prompt, to see what later prompts make of its end.
AFTERWARDS = (Message.assistant("x"), Message.user("y"))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is fed, and the places in it that later prompts may come back to.

    Attributes:
        ledger: Its ids and its text.
        opening: How many leading ids every conversation under these instructions begins with.
        stable: How many leading ids every later prompt of this conversation will begin with:
            templates end a prompt with what they drop from history.
    """

    ledger: TokenLedger
    opening: int = 0
    stable: int = 0


class PromptBuilder:
    """Makes prompts of a conversation, through the model's chat template.

    Args:
        tokenizer: The engine's tokenizer.
        template_kwargs: Arguments for the chat template.
    """

    def __init__(self, tokenizer: Tokenizer, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._template_kwargs = template_kwargs
        # The opening's ids, which change with the instructions alone.
        self._opening: tuple[Message | None, tuple[int, ...]] | None = None

    def build(
        self,
        system: Message | None,
        messages: Sequence[Message],
        held: TokenLedger,
        *,
        places: bool = True,
    ) -> Prompt:
        """A turn's prompt.

        Where its text starts with the text of the held ids, those ids stand and only the rest is
        encoded: what the model sampled is kept, although its text might encode to other ids.

        Args:
            system: The instructions.
            messages: The conversation, the new messages behind.
            held: What the KV cache holds.
            places: Whether to look for `Prompt.opening` and `Prompt.stable`, which renders the
                conversation once more.

        Raises:
            TemplateError: The chat template refused the messages or broke on them.
        """
        ledger = self._splice(self._render(system, messages), held)
        if not places:
            return Prompt(ledger)
        try:
            later = self._splice(self._render(system, [*messages, *AFTERWARDS]), held).ids
        except TemplateError:  # it takes this conversation, but not one that goes on so
            later = ()
        return Prompt(
            ledger,
            common_prefix(ledger.ids, self._opening_ids(system)),
            common_prefix(ledger.ids, later),
        )

    def build_opening(
        self, system: Message | None, messages: Sequence[Message], held: TokenLedger
    ) -> Prompt:
        """What every prompt begins with that asks something after these messages.

        Args and errors are those of `build`.
        """
        ledger, shared = self._shared(system, messages, held)
        # White space joins to more than any list of questions shows.
        length = without_white_space(self._tokenizer, ledger.ids[:shared])
        kept = ledger.truncate(ledger.truncate(length).seams[-1].ids)
        rest = ledger.ids[len(kept.ids) : length]
        ledger = kept.extend(rest, spell(self._tokenizer, kept.ids, rest))
        return Prompt(ledger, common_prefix(ledger.ids, self._opening_ids(system)), length)

    def shared_ids(
        self, system: Message | None, messages: Sequence[Message], held: TokenLedger
    ) -> tuple[int, ...]:
        """The ids that prompts which ask something after these messages may begin with.

        Longer than what `build_opening` feeds: white space at their end may turn out to be joined.

        Args and errors are those of `build`.
        """
        ledger, length = self._shared(system, messages, held)
        return ledger.ids[:length]

    def _shared(
        self, system: Message | None, messages: Sequence[Message], held: TokenLedger
    ) -> tuple[TokenLedger, int]:
        """A prompt that asks something, and how many ids all such prompts share with it."""
        first, *others = (
            self._splice(self._render(system, [*messages, question]), held)
            for question in QUESTIONS
        )
        return first, min(common_prefix(first.ids, other.ids) for other in others)

    def _opening_ids(self, system: Message | None) -> tuple[int, ...]:
        if self._opening is None or self._opening[0] != system:
            try:
                ids = self.shared_ids(system, (), TokenLedger())
            except TemplateError:  # it takes conversations, but not a question alone
                ids = ()
            self._opening = (system, ids[: without_white_space(self._tokenizer, ids)])
        return self._opening[1]

    def _render(self, system: Message | None, messages: Sequence[Message]) -> str:
        whole = messages if system is None else (system, *messages)
        text = self._tokenizer.render(
            [message.to_template() for message in whole],
            add_generation_prompt=True,
            template_kwargs=self._template_kwargs,
        )
        if not text:
            raise TemplateError(
                "The chat template rendered this conversation to nothing, so there is nothing to "
                "feed.",
                remedy="Check the messages, and the model's chat template.",
            )
        return text

    def _splice(self, text: str, held: TokenLedger) -> TokenLedger:
        """The ids of a rendered text, those that are held where they spell its beginning."""
        seam = held.seam_within(text)
        if seam.ids:
            kept, rest = held.truncate(seam.ids), text[seam.chars :]
            ids = self._encode_behind(kept.ids, rest)
            if ids is not None:
                return kept.extend(ids, rest)
        return TokenLedger().extend(self._tokenizer.encode(text), text)

    def _encode_behind(self, before: Sequence[int], text: str) -> list[int] | None:
        """Ids that spell a text behind others; ``None`` where the tokenizer makes none.

        Some tokenizers put a space or BOS before whatever they encode, which the template did not
        write: then something stands in front that takes it, and is cut off again.
        """
        for anchor in ANCHORS:
            marked = list(self._tokenizer.encode(anchor)) if anchor else []
            ids = list(self._tokenizer.encode(anchor + text))
            if ids[: len(marked)] == marked:
                ids = ids[len(marked) :]
                if spell(self._tokenizer, before, ids) == text:
                    return ids
        return None


def append_reply(tokenizer: Tokenizer, prompt: TokenLedger, tokens: Sequence[int]) -> TokenLedger:
    """The ledger of a prompt and the reply sampled after it.

    A seam stands on either side of a final eos, as not every template writes the one that was
    sampled, and before white space at the end, which many templates trim.
    """
    ended = bool(tokens) and tokens[-1] in tokenizer.eos_token_ids
    body = tokens[:-1] if ended else tokens
    length = without_white_space(tokenizer, body)
    if spell(tokenizer, prompt.ids, body[:length]) is None:  # but perhaps the whole can be told
        length = len(body)
    ledger = prompt
    for part in (body[:length], body[length:], tokens[len(body) :]):
        ledger = ledger.extend(part, spell(tokenizer, ledger.ids, part))
    return ledger


def without_white_space(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many of the ids there are without those at the end that spell white space alone."""
    length = len(ids)
    while length and not tokenizer.decode(ids[length - 1 : length]).strip():
        length -= 1
    return length


def spell(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str | None:
    """What `ids` spell behind `before`; ``None`` where the two can't be told apart."""
    context = list(before[-JOIN_CONTEXT:])
    alone = tokenizer.decode(context)
    together = tokenizer.decode([*context, *ids])
    return together[len(alone) :] if together.startswith(alone) else None

"""From a history to the ids of a prompt: render the chat template, then splice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .engine import Tokenizer
from .errors import TemplateError
from .ledger import TokenLedger, common_prefix
from .messages import Message

# How many ids in front of a join are decoded along with it. Decoders look at their neighbours (a
# first space dropped, bytes that make one character), never far.
JOIN_CONTEXT = 8
# Two questions that share no beginning: what two prompts with them share comes before any question.
OPENING_QUESTIONS = ("a", "b")


def build_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    held: TokenLedger,
    template_kwargs: Mapping[str, Any],
) -> TokenLedger:
    """The ids of a turn's prompt, as the ledger will hold them once they are fed.

    Args:
        tokenizer: The engine's tokenizer.
        messages: The whole conversation, instructions in front, the new messages behind.
        held: What the KV cache holds.
        template_kwargs: Arguments for the chat template.

    Raises:
        TemplateError: The chat template refused the messages or broke on them.
    """
    return _splice(tokenizer, _render(tokenizer, messages, template_kwargs), held)


def build_opening(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    held: TokenLedger,
    template_kwargs: Mapping[str, Any],
) -> TokenLedger:
    """The ids that every prompt begins with which asks something after these messages.

    Args and errors are those of `build_prompt`.
    """
    first, second = (
        _render(tokenizer, [*messages, Message.user(question)], template_kwargs)
        for question in OPENING_QUESTIONS
    )
    return _splice(tokenizer, first[: common_prefix(first, second)], held)


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], template_kwargs: Mapping[str, Any]
) -> str:
    text = tokenizer.render(
        [message.to_template() for message in messages],
        add_generation_prompt=True,
        template_kwargs=template_kwargs,
    )
    if not text:
        raise TemplateError(
            "The chat template rendered this conversation to nothing, so there is nothing to feed.",
            remedy="Check the messages, and the model's chat template.",
        )
    return text


def _splice(tokenizer: Tokenizer, text: str, held: TokenLedger) -> TokenLedger:
    """The ids of a rendered text.

    Where it starts with the text of the held ids, those ids stand and only the rest is encoded:
    what the model sampled is kept, although its text might encode to other ids.
    """
    seam = held.seam_within(text)
    if seam.ids:
        kept, rest = held.truncate(seam.ids), text[seam.chars :]
        ids = tokenizer.encode(rest)
        # Some tokenizers put a space or BOS before whatever they encode: then the join spells
        # something that the template did not write, and the whole is encoded instead.
        if spell(tokenizer, kept.ids, ids) == rest:
            return kept.extend(ids, rest)
    return TokenLedger().extend(tokenizer.encode(text), text)


def append_reply(tokenizer: Tokenizer, prompt: TokenLedger, tokens: Sequence[int]) -> TokenLedger:
    """The ledger of a prompt and the reply sampled after it.

    A seam stands on either side of a final eos: not every template writes the one that was sampled.
    """
    ended = bool(tokens) and tokens[-1] in tokenizer.eos_token_ids
    body = tokens[:-1] if ended else tokens
    ledger = prompt.extend(body, spell(tokenizer, prompt.ids, body))
    if ended:
        ledger = ledger.extend(tokens[-1:], spell(tokenizer, ledger.ids, tokens[-1:]))
    return ledger


def spell(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str | None:
    """What `ids` spell behind `before`; ``None`` where the two can't be told apart."""
    context = list(before[-JOIN_CONTEXT:])
    alone = tokenizer.decode(context)
    together = tokenizer.decode([*context, *ids])
    return together[len(alone) :] if together.startswith(alone) else None

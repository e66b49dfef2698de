"""Why a turn reused no more of the cache than it did.

*How it works.* A session remembers what its cache was read from: the conversation, and the ledger
of the ids. A prompt parts from these ids somewhere. The texts of both are compared, to find at
which character. Then each thing that has changed since (instructions, arguments, date, a message)
is set back by itself, and the prompt rendered again: this shows from which character on the change
matters. The change that matters where the two texts part is the reason. If there is none, the
template itself rendered the same conversation otherwise, and the message is found in which it did.

All this is done when someone asks, not in the turn.

*What does not work.* Comparing conversations alone: they don't say where a template writes what.
Some write the instructions before the last question, and tools after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..conversation import Conversation
from ..engine import Tokenizer
from ..ledger import TokenLedger, common_prefix
from ..messages import Message
from ..tool_call import ToolCall
from ..usage import MissReason, Reuse
from .plan import TurnPlan
from .prompts.rendering import Renderer, squeezed
from .prompts.spelling import SEAM_CONTEXT

# Contents that share neither beginning nor end with what was said.
OTHERS = ("\u2042 zqx \u2042", "zqx")


WENT_FURTHER = ", and the cache could not go back just so far"


@dataclass(frozen=True, slots=True)
class Read:
    """What a cache was read from."""

    conversation: Conversation
    """The conversation."""
    ledger: TokenLedger | None
    """The ids, after an opaque prefix; ``None`` if they are unknown, and lost."""
    lost: str = ""
    """Why the cache holds less than these ids, in words; empty if nobody took them back."""
    cut: int | None = None
    """The index of the first message that was taken back since."""
    left: int | None = None
    """How many of the ids were to stay then; the cache may have gone back further."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A cache as a turn finds it."""

    read: Read | None
    """What it was read from; ``None`` if nothing was read yet."""
    prefix: int
    """How many tokens its opaque prefix has."""
    held: int
    """How many ids it holds after that."""
    kept: int
    """How many tokens it holds once it was rewound, the prefix included."""


class _Cause(NamedTuple):
    """A reason, and the message."""

    reason: MissReason
    message: int | None
    detail: str


def explain(tokenizer: Tokenizer, opening: Opening, plan: TurnPlan, reused: int) -> Reuse:
    """Return how much of a turn's prompt was reused, and why not more.

    Args:
        tokenizer: The engine's tokenizer.
        opening: The cache, as the turn found it.
        plan: The turn.
        reused: How many tokens the engine reused, an opaque prefix included.
    """
    read, prefix = opening.read, opening.prefix
    if read is None:
        return Reuse(reused, plan.length, held_tokens=prefix, shared_tokens=prefix)
    if read.ledger is None:
        cause: _Cause | None = _Cause(MissReason.LOST, None, read.lost)
        return _reuse(cause, reused, plan, prefix, prefix)
    before, prompt = read.ledger.ids, plan.prompt.ledger.ids
    common = common_prefix(before, prompt)
    # The last id of a prompt is always fed.
    shared = min(common, len(prompt) - 1)
    if read.left is not None and read.cut == len(read.conversation.messages):
        shared = min(shared, read.left)  # no message went, but what was read ahead after them
    there = min(shared, opening.held)
    went_further = opening.kept < prefix + there or (there < shared and not read.lost)
    if reused < opening.kept:
        cause = _Cause(MissReason.ENGINE, None, "the engine reused less than it was sent before")
        went_further = False
    elif there < shared and read.lost:
        cause, shared = _Cause(MissReason.LOST, None, read.lost), there
    elif read.left is not None and read.left < shared:
        cause = _taken_back(read, _spoken(plan))
        went_further = there < min(read.left, shared)
    elif common < len(before) and not (plan.begun and common == len(prompt)):
        cause = _Parting(tokenizer, read.conversation, read.ledger, plan, shared).cause()
    else:
        cause = None
    if went_further:
        if cause is None:
            detail = (
                f"the cache could not go back to the first {prefix + shared:,}, which are the same"
            )
            cause = _Cause(MissReason.REWIND, None, detail)
        else:
            cause = cause._replace(detail=cause.detail + WENT_FURTHER)
    return _reuse(cause, reused, plan, prefix + len(before), prefix + shared)


def _reuse(cause: _Cause | None, reused: int, plan: TurnPlan, held: int, shared: int) -> Reuse:
    reason, index, detail = (None, None, "") if cause is None else cause
    return Reuse(reused, plan.length, reason, index, held, shared, detail)


def _spoken(plan: TurnPlan) -> Conversation:
    """Return a turn's conversation, with the reply so far if it is continued."""
    return plan.conversation if plan.said is None else plan.conversation.extended(plan.said)


def _called_with(call: ToolCall, other: str) -> ToolCall:
    arguments = other if isinstance(call.arguments, str) else {OTHERS[-1]: other}
    return replace(call, arguments=arguments)


def _taken_back(read: Read, new: Conversation) -> _Cause:
    first = common_prefix(read.conversation.messages, new.messages)
    if read.cut is not None and first > read.cut:  # and was said again
        return _Cause(MissReason.MESSAGE, read.cut, f"message {read.cut} was taken back")
    return _other_message(new, first)


def _other_message(new: Conversation, index: int) -> _Cause:
    if index < len(new.messages):
        role = new.messages[index].role
        detail = f"message {index} ({role}) is another than before"
        return _Cause(MissReason.MESSAGE, index, detail)
    return _Cause(MissReason.MESSAGE, index, f"message {index} was taken back")


class _Parting:
    """Finds why a prompt parts from the ids that were read.

    Args:
        tokenizer: The engine's tokenizer.
        old: What the ids were read from.
        ledger: The ids.
        plan: The turn.
        shared: How many ids the prompt shares with them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        old: Conversation,
        ledger: TokenLedger,
        plan: TurnPlan,
        shared: int,
    ) -> None:
        self._tokenizer = tokenizer
        # The turn's own would forget what it found out, as arguments of the template change.
        self._renderer = Renderer(tokenizer)
        self._old, self._new = old, plan.conversation
        self._spoken = _spoken(plan)
        self._dropped = bool(plan.dropped)
        self._ledger = ledger
        # What is rendered; a reply that is continued comes after it.
        asked = plan.prompt.ledger
        self._text = asked.truncate(len(asked.ids) - len(plan.begun)).text
        self._length = len(asked.text)
        self._shared = shared
        # Where the texts part, and where the ids do.
        self._parted = common_prefix(ledger.text, asked.text)
        self._kept = self._chars(shared)
        # The first message that is another.
        self._first = common_prefix(old.messages, self._spoken.messages)

    def cause(self) -> _Cause | None:
        """Return the reason; ``None`` if only the end of the last reply is another."""
        extended = self._first == len(self._old.messages)
        if extended and self._is_after_all():
            return None
        allowed = self._old.allow_control_tokens
        if allowed != self._new.allow_control_tokens:
            place = self._differs(replace(self._new, allow_control_tokens=allowed))
            if place is not None and place <= self._parted:
                detail = "allow_control_tokens changed"
                return _Cause(MissReason.TOKENS, self._index_at(place), detail)
        if self._are_other_tokens():
            index = self._index_at(self._kept)
            detail = f"the tokenizer makes other tokens of {self._named(index)}"
            return _Cause(MissReason.TOKENS, index, detail)
        changes = self._changes()
        if changes:
            known = [
                (place, -number, cause)
                for number, (cause, place) in enumerate(changes)
                if place is not None and place <= self._parted
            ]
            if known:
                return max(known)[2]
            if len(changes) == 1 and changes[0][1] is None:
                return changes[0][0]
        index = self._index_at(self._parted)
        if index == len(self._new.messages):  # the reply so far: after a stop string, say
            detail = f"{self._named(index)} was cached otherwise than it was recorded"
            return _Cause(MissReason.MESSAGE, index, detail)
        if extended and index is not None:
            index = min(index, len(self._old.messages) - 1)
        detail = f"the chat template rendered {self._named(index)} otherwise than before"
        return _Cause(MissReason.TEMPLATE, index, detail)

    def _changes(self) -> list[tuple[_Cause, int | None]]:
        """Return what has changed, and from which character of the prompt on that matters."""
        old, new = self._old, self._new
        found: list[tuple[_Cause, int | None]] = []
        # Of several at one place, the first one here is named.
        if self._renderer.writes_date and old.date != new.date:
            cause = _Cause(MissReason.DATE, None, "the template writes another date")
            found.append((cause, self._differs(replace(new, date=old.date))))
        if old.template_kwargs != new.template_kwargs:
            names = sorted(
                name
                for name in {*old.template_kwargs, *new.template_kwargs}
                if old.template_kwargs.get(name) != new.template_kwargs.get(name)
            )
            detail = f"the template's arguments changed ({', '.join(names) or 'their order'})"
            cause = _Cause(MissReason.TEMPLATE_KWARGS, None, detail)
            found.append((cause, self._differs(replace(new, template_kwargs=old.template_kwargs))))
        if old.instructions != new.instructions:
            cause = _Cause(MissReason.INSTRUCTIONS, None, "the instructions changed")
            found.append((cause, self._differs(replace(new, instructions=old.instructions))))
        if self._first < len(old.messages):
            cause = _other_message(self._spoken, self._first)
            if self._dropped:
                detail = f"messages from {self._first} on were dropped to make room"
                cause = _Cause(MissReason.DROPPED, self._first, detail)
            found.append((cause, self._start(self._first)))
        return found

    def _differs(self, other: Conversation) -> int | None:
        """Return where the prompt of another conversation differs; ``None`` if it has none."""
        text = self._rendered(other)
        return None if text is None else common_prefix(text, self._text)

    def _rendered(self, conversation: Conversation) -> str | None:
        try:
            return self._renderer.render(conversation)
        except Exception:  # a template is a program, and this is not what it was asked to render
            return None

    def _are_other_tokens(self) -> bool:
        """Return True if ids are not shared whose text is, more than a tokenizer may join."""
        ids = self._ledger.ids[: self._shared + SEAM_CONTEXT]
        if len(ids) < self._shared + SEAM_CONTEXT:
            return self._parted == len(self._ledger.text) > self._kept
        return self._chars(len(ids)) < self._parted

    def _chars(self, length: int) -> int:
        """Return how many characters the first ids spell."""
        ledger = self._ledger.truncate(length)
        seam = ledger.seams[-1]
        return seam.chars + len(self._tokenizer.decode(ledger.ids[seam.ids :]))

    def _is_after_all(self) -> bool:
        """Return True if all that was said before is shared: only the end of the reply is not."""
        *_, last = self._old.messages or [None]
        if last is None:
            return False
        ids = self._ledger.ids
        ended = bool(ids) and ids[-1] in self._tokenizer.eos_token_ids
        eos = squeezed(self._tokenizer.decode(ids[-1:])) if ended else ""
        said = squeezed(last.text) or squeezed(last.reasoning or "")
        if said and not last.tool_calls and squeezed(self._ledger.text).endswith(said + eos):
            rest = self._ledger.text[self._kept :]
            return len(squeezed(rest)) <= len(eos)
        for index in reversed(range(len(self._old.messages))):
            end = self._end(index)
            if end is not None:
                return self._kept >= end
        return False

    def _index_at(self, place: int) -> int | None:
        """Return the message that a character of the prompt belongs to; ``None`` before them."""
        messages = self._new.messages
        if self._spoken is not self._new and place >= len(self._text):
            return len(messages)
        start, end = self._span_of_instructions()
        if start is not None and end is not None and start <= place < end:
            return None
        low, high = 0, len(messages)
        while low < high:
            middle = probe = (low + high) // 2
            end = self._end(probe)
            while end is None and probe + 1 < high:  # it is not rendered
                probe += 1
                end = self._end(probe)
            if end is None or place < end:
                high = middle
            else:
                low = probe + 1
        return min(low, len(messages) - 1) if messages else None

    def _start(self, index: int) -> int | None:
        """Return where a message begins, with what the template writes before it."""
        if index:
            return self._end(index - 1)
        start = self._span_of(0)[0] if self._new.messages else None
        _, after = self._span_of_instructions()
        return after if start is not None and after is not None and after <= start else 0

    def _end(self, index: int) -> int | None:
        """Return where a message ends in the prompt; ``None`` if it is not rendered."""
        return self._span_of(index)[1]

    def _span_of_instructions(self) -> tuple[int | None, int | None]:
        if self._new.instructions is None:
            return None, None
        changed = [replace(self._new, instructions=other) for other in OTHERS]
        return self._span(lambda: map(self._rendered, changed))

    def _span_of(self, index: int) -> tuple[int | None, int | None]:
        messages = self._new.messages
        if index == len(messages):  # the reply so far
            return len(self._text), self._length

        def changed() -> list[str | None]:
            texts = []
            for other in OTHERS:
                message = messages[index]
                bare = Message(message.role, other, message.name, (), message.tool_call_id)
                # Where a result follows, its call has to stay; not so what it is called with.
                calls = tuple(_called_with(call, other) for call in message.tool_calls)
                called = replace(message, tool_calls=calls)
                for instead in (bare, called, replace(message, content=other)):
                    text = self._rendered(
                        self._new.with_messages(
                            (*messages[:index], instead, *messages[index + 1 :])
                        )
                    )
                    if text is not None:
                        break
                texts.append(text)
            return texts

        return self._span(changed)

    def _span(self, changed: Callable[[], Iterable[str | None]]) -> tuple[int | None, int | None]:
        """Return the part of the prompt that differs from some other prompts."""
        texts = [text for text in changed() if text is not None and text != self._text]
        if not texts:
            return None, None
        start = min(common_prefix(text, self._text) for text in texts)
        backwards = self._text[::-1]
        tail = min(common_prefix(text[::-1], backwards) for text in texts)
        return start, max(len(self._text) - tail, start)

    def _named(self, index: int | None) -> str:
        if index is None:
            return "its beginning" if self._new.instructions is None else "the instructions"
        return f"message {index} ({self._spoken.messages[index].role})"

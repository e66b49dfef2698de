"""From a conversation to the ids of a prompt: rendered text, spliced.

*Splicing.* Where the rendered text begins with the text of the cached ids, those ids stay and only
the rest is encoded: what the model sampled is kept, although its text might encode to other ids.

*Contents are text.* What people and tools say is marked before it is rendered, and cut to be
encoded, so that it holds no control token (`contents.py`), unless the conversation allows them.

*Where later prompts come back to.* Two lengths of a prompt matter to caches that rewind to
checkpoints alone: its opening, shared by every conversation under these instructions, and its
stable part, which every later prompt of this conversation begins with (templates end a prompt with
text that they drop from history). Both are found by rendering other prompts and comparing ids:
text won't do, since the end of a text may join with what follows into one token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...conversation import Conversation
from ...engine import Tokenizer
from ...errors import TemplateError
from ...ledger import TokenLedger, common_prefix
from ...messages import Message
from ...text.form import ReplyForm, Wrapping, find_opening, find_wrapping
from .contents import Controls
from .left_out import LeftOut
from .rendering import AFTERWARDS, Renderer
from .spelling import encode_settled, encode_whole, spell_settled, without_white_space

# Questions that begin in all the ways that a tokenizer may join to what precedes them: the ids that
# all prompts share come before any question.
QUESTIONS = tuple(Message.user(text) for text in ("a", "B", "1", "é", ".", ")", "'s", " a", "\na"))
# Shows what a template says of itself, its reasoning turned on.
BARE = Conversation(template_kwargs={"thinking": True, "enable_thinking": True})


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is fed."""

    ledger: TokenLedger
    """Its ids and its text."""
    opening: int = 0
    """How many leading ids every conversation under these instructions begins with."""
    stable: int = 0
    """How many leading ids every later prompt of this conversation will begin with."""
    left_out: tuple[str, ...] = ()
    """What the template left out of it, in sentences."""


class PromptBuilder:
    """Makes prompts of conversations, through the model's chat template.

    Args:
        tokenizer: The engine's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        """The engine's tokenizer."""
        self.renderer = Renderer(tokenizer)
        """Renders conversations."""
        self._left_out = LeftOut(self.renderer)
        self._controls = Controls.of(tokenizer)
        # The latest conversation without messages, and the ids of its opening.
        self._opening: tuple[Conversation, tuple[int, ...]] | None = None
        # The latest conversation without messages, and what stands around its answers.
        self._wrapping: tuple[Conversation, Wrapping | None] | None = None

    def copy(self) -> Self:
        """Return another one that knows as much: what a fork changes is its own."""
        twin = copy.copy(self)
        twin.renderer = copy.copy(self.renderer)
        twin._left_out = LeftOut(twin.renderer)
        return twin

    def build(
        self,
        conversation: Conversation,
        cached: TokenLedger,
        *,
        checkpoints: bool,
        asked: int | None = None,
    ) -> Prompt:
        """Return a turn's prompt.

        Args:
            conversation: What was said, the new messages last.
            cached: What the KV cache holds.
            checkpoints: Whether to look for `Prompt.opening` and `Prompt.stable`, which renders the
                conversation once more.
            asked: How many messages, the last ones, are said now, to check that the template
                leaves nothing out; ``None`` checks nothing.

        Raises:
            TemplateError: if the chat template refuses the messages or breaks on them.
            LostWordsError: if it leaves out what is said now, or the instructions.
        """
        text = self.renderer.render(conversation)
        left_out: tuple[str, ...] = ()
        if asked is not None:
            left_out = self._left_out.check(conversation, text, asked=asked)
        ledger = self._splice_text(text, cached)
        if not checkpoints:
            return Prompt(ledger, left_out=left_out)
        try:
            later = self._splice(conversation.extended(*AFTERWARDS), cached).ids
        except TemplateError:  # it takes this conversation, but not one that continues so
            later = ()
        return Prompt(
            ledger,
            common_prefix(ledger.ids, self._opening_ids(conversation)),
            common_prefix(ledger.ids, later),
            left_out,
        )

    def build_opening(self, conversation: Conversation, cached: TokenLedger) -> Prompt:
        """Return the prefix shared by every prompt that adds a question to a conversation.

        Raises:
            TemplateError: if the chat template refuses the messages or breaks on them.
            LostWordsError: if it leaves out the instructions.
        """
        question = conversation.extended(QUESTIONS[0])
        self._left_out.check(question, self.renderer.render(question), asked=0)
        ledger, shared = self._shared(conversation, cached)
        # White space joins to more than any list of questions shows.
        length = without_white_space(self.tokenizer, ledger.ids[:shared])
        kept = ledger.truncate(ledger.truncate(length).seams[-1].ids)
        rest = ledger.ids[len(kept.ids) : length]
        ledger = kept.extend(rest, spell_settled(self.tokenizer, kept.ids, rest))
        return Prompt(ledger, common_prefix(ledger.ids, self._opening_ids(conversation)), length)

    def form(self, conversation: Conversation, prompt: Prompt) -> ReplyForm:
        """Return the form of the reply to a conversation, whose prompt this is."""
        tags, empty = self.tokenizer.reasoning_tags, conversation.with_messages(())

        def render(messages: Sequence[Message]) -> str:
            return self.renderer.render(conversation.with_messages(messages))

        if self._wrapping is None or self._wrapping[0] != empty:
            wrapping = find_wrapping(
                render,
                lambda messages: self.renderer.render(BARE.with_messages(messages)),
                tags=tags,
                ends=[self.tokenizer.decode([end]) for end in self.tokenizer.eos_token_ids],
                instructions=conversation.instructions,
            )
            self._wrapping = (empty, wrapping)
        opening = find_opening(render, conversation.messages, prompt.ledger.text, tags=tags)
        return ReplyForm(tags, self._wrapping[1], opening)

    def shared_ids(self, conversation: Conversation, cached: TokenLedger) -> tuple[int, ...]:
        """Return the ids that prompts which add a question may begin with.

        Longer than what `build_opening` feeds: white space at their end may turn out to be joined.

        Raises:
            TemplateError: if the chat template refuses the messages or breaks on them.
        """
        ledger, length = self._shared(conversation, cached)
        return ledger.ids[:length]

    def _shared(self, conversation: Conversation, cached: TokenLedger) -> tuple[TokenLedger, int]:
        """Return a prompt that asks something, and how many ids all such prompts share with it."""
        first, *others = (
            self._splice(conversation.extended(question), cached) for question in QUESTIONS
        )
        return first, min(common_prefix(first.ids, other.ids) for other in others)

    def _opening_ids(self, conversation: Conversation) -> tuple[int, ...]:
        empty = conversation.with_messages(())
        # Conversations are compared without their dates.
        known = None if self._opening is None else (self._opening[0], self._opening[0].date)
        if self._opening is None or known != (empty, empty.date):
            try:
                ids: Sequence[int] = self.shared_ids(empty, TokenLedger())
            except TemplateError:  # it takes conversations, but not a question alone
                ids = ()
            length = without_white_space(self.tokenizer, ids)
            self._opening = (empty, tuple(ids[:length]))
        return self._opening[1]

    def _splice(self, conversation: Conversation, cached: TokenLedger) -> TokenLedger:
        """Return the ids of a conversation's prompt, cached ones where they spell its beginning."""
        return self._splice_text(self.renderer.render(conversation), cached)

    def _splice_text(self, text: str, cached: TokenLedger) -> TokenLedger:
        seam = cached.seam_within(text)
        while (start := self._token_across(text, seam.chars)) is not None:
            seam = cached.seam_before(start)
        if seam.ids:
            kept, rest = cached.truncate(seam.ids), text[seam.chars :]
            ids = encode_settled(self.tokenizer, kept.ids, rest)
            if ids is not None:
                return kept.extend(ids, rest)
        return TokenLedger().extend(encode_whole(self.tokenizer, text), text)

    def _token_across(self, text: str, offset: int) -> int | None:
        """Return where a control token begins that the cached ids would only spell a part of."""
        return None if self._controls is None else self._controls.start_across(text, offset)

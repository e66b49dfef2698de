"""Reply: the driver of one turn, for a caller that iterates.

*How it works.* Each call of ``next`` takes one step from the context, has the reader turn it into
pieces of text, and yields the first of them; further pieces of the same token wait for the next
calls. The clock, and Ctrl-C, are handled here and nowhere else in a turn: the work runs under an
`InterruptHold`, so that a KeyboardInterrupt arrives between two steps, where the cache is in step.

*Ending.* However the reply ends (a finish reason, `close`, the end of a ``with`` block, garbage
collection, an exception, Ctrl-C), `_end` closes the generator first, so that the context settles on
what it holds, then adds the text that is still withheld, then commits the turn; once.

*What does not work.* A KeyboardInterrupt in the main thread can't stop a reply that another thread
iterates; and one that comes while a reply is garbage collected is delivered a moment later, since
Python swallows exceptions in finalizers.
"""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter
from types import TracebackType
from typing import Any, NoReturn

from ..engine import Step
from ..errors import AnswerError, ConfigurationError, SessionBusyError
from ..interrupt import InterruptHold
from ..messages import Message
from ..response import FinishReason, GenerationResponse
from ..text.reader import ReplyReader
from ..text.tags import TextPiece
from ..usage import Reuse, TurnUsage
from .core import SessionCore
from .plan import TurnPlan

# How much of a reply's text its repr shows.
LONGEST_SHOWN = 40


class Reply:
    """A reply as it is being generated: an iterator of `GenerationResponse`, and a context manager.

    Made by `ChatSession.stream`. However it ends (eos, length, a stop string, `close`, leaving the
    ``with`` block, garbage collection, an exception, Ctrl-C), it is recorded in the session exactly
    once, with the text generated so far. Ctrl-C is delivered between two tokens or two chunks of
    prefill, never inside one.

    Examples:
        >>> import segue
        >>> from segue.testing import FakeEngine
        >>> session = segue.ChatSession(FakeEngine(["hello world"]))
        >>> with session.stream("Hi") as reply:
        ...     for response in reply:
        ...         print(response.text, end="|")
        hello| world||
        >>> reply.text, str(reply.finish_reason)
        ('hello world', 'stop')

    Raises (while iterating):
        GenerationError: if the model or its runtime failed; the text until then is recorded.
        SessionBusyError: if it is used from inside its own progress callback, or from another
            thread while it runs.
    """

    def __init__(
        self,
        core: SessionCore,
        plan: TurnPlan,
        steps: Generator[Step, None, None],
        reader: ReplyReader,
        cached: int,
    ) -> None:
        self._core = core
        self._plan = plan
        self._steps = steps
        self._reader = reader
        self._cached = cached
        self._opening = core.opening
        # Pieces that the newest token made besides the one that was yielded.
        self._waiting: list[GenerationResponse] = []
        self._hold = InterruptHold()
        self._running = False
        self._ended = False
        self._started = False
        self._prefill_started = 0.0
        self._decode_started = 0.0
        self._last_token = 0.0
        self._prompt_tps = 0.0
        self._usage: TurnUsage | None = None

    @property
    def text(self) -> str:
        """The text so far, without reasoning; once ended, what the history records.

        Of a reply that was continued, what was added to it.
        """
        return self._reader.added_text

    @property
    def reasoning(self) -> str:
        """The reasoning so far, if the model marks it; recorded with the text."""
        return self._reader.added_reasoning

    @property
    def value(self) -> Any:
        """The value of the answer, if the turn asked for one by a schema.

        Raises:
            AnswerError: if the reply isn't over, or was cut before its answer was whole; the error
                has the text so far.
            ConfigurationError: if the turn had no schema.
        """
        answer = self._plan.answer
        if answer is None:
            raise ConfigurationError(
                "A reply has a value only if its turn had a schema.",
                remedy="Read reply.text, or pass schema=... to the turn.",
            )
        if self.finish_reason is not FinishReason.STOP:
            raise AnswerError(
                "The answer isn't whole: " + ("it was cut." if self.ended else "it is being said."),
                remedy="Allow more by max_tokens, and retry()." if self.ended else "Read it first.",
                text=self.text,
            )
        return answer.value(self.text)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids generated so far, a final eos included."""
        return tuple(self._reader.tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the reply ended; ``None`` while it runs, and if it was cut short."""
        return self._reader.finish_reason

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the whole prompt of this turn."""
        return self._plan.length

    @property
    def cached_tokens(self) -> int:
        """How many of those were cached and not read again.

        What the engine reports; until it does, what the session's cache should hold.
        """
        return self._cached

    @property
    def reuse(self) -> Reuse:
        """How much of the prompt was cached, and why not more. Worked out when it is asked for."""
        return self._core.explain(self._opening, self._plan, self.cached_tokens)

    @property
    def dropped(self) -> tuple[Message, ...]:
        """The messages that left the history so that this turn fits into the model's context."""
        return self._plan.dropped

    @property
    def usage(self) -> TurnUsage:
        """The cost of this turn so far."""
        if self._usage is not None:
            return self._usage
        cached = self.cached_tokens
        fed = self.prompt_tokens - cached
        count = len(self._reader.tokens)
        if not count:
            # Broken off while the prompt was being read: only a part of it may have been.
            fed = max(min(self._core.cache.offset - cached, fed), 0)
        return TurnUsage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=cached,
            fed_tokens=fed,
            generated_tokens=count,
            prefill_seconds=self._decode_started - self._prefill_started if count else 0.0,
            decode_seconds=self._last_token - self._decode_started,
        )

    @property
    def ended(self) -> bool:
        """True once the reply is over and recorded."""
        return self._ended

    @property
    def history_so_far(self) -> tuple[Message, ...]:
        """The session's history, with what this reply has said so far if it has not ended."""
        if self._ended:
            return self._core.conversation.messages
        return self._core.messages_after(self._plan, self._reader)

    def __repr__(self) -> str:
        how = "live" if not self._ended else f"ended, {self.finish_reason or 'cut short'}"
        text = self.text if len(self.text) <= LONGEST_SHOWN else self.text[:LONGEST_SHOWN] + "…"
        return f"<Reply, {how}: {len(self._reader.tokens):,} tokens, {text!r}>"

    def __iter__(self) -> Reply:
        return self

    def __next__(self) -> GenerationResponse:
        self._claim()
        try:
            if not self._ended:
                self._hold.arm()
            with self._hold:
                try:
                    self._hold.deliver()
                    return self._advance()
                except BaseException:
                    self._end()
                    raise
        finally:
            self._running = False

    def close(self) -> None:
        """End the reply here and record it; do nothing if it has ended.

        Raises:
            SessionBusyError: if it is running right now: this is its own progress callback, or
                another thread.
            KeyboardInterrupt: if Ctrl-C came during the last token and was not delivered yet.
        """
        self._claim()
        try:
            with self._hold:
                self._end()
                self._hold.deliver()
        finally:
            self._running = False

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """A copy would run on the same cache, and end the same turn twice."""
        raise ConfigurationError(
            "A reply can't be copied or pickled while or after it runs.",
            remedy="Take its text, usage and responses.",
        )

    def __del__(self) -> None:
        if not getattr(self, "_ended", True) and not self._running:
            with self._hold:
                self._end()
            self._hold.pass_on()

    def _claim(self) -> None:
        if self._running:
            raise SessionBusyError(
                "This reply is being generated at this moment.",
                remedy="Don't use its session inside a progress callback or logits processor, nor "
                "from two threads at once.",
            )
        self._running = True

    def _advance(self) -> GenerationResponse:
        """Take one step; raise StopIteration if there is none to take."""
        if self._waiting:
            return self._yielded(self._waiting.pop(0))
        if self._ended:
            raise StopIteration
        if not self._reader.tokens:
            self._prefill_started = perf_counter()
        self._started = True
        step = next(self._steps, None)
        if step is None:
            self._reader.run_out()
            raise StopIteration
        self._last_token = perf_counter()
        if not self._reader.tokens:
            self._note_prefill()
        pieces = self._reader.push(step.token)
        if len(pieces) > 1:
            self._waiting = [self._response(step, piece, pieces[-1]) for piece in pieces[1:]]
        return self._yielded(self._response(step, pieces[0], pieces[-1]))

    def _note_prefill(self) -> None:
        """The prompt was read: note what that took, and what the engine reused of it."""
        self._note_reused()
        self._decode_started = self._last_token
        fed = self.prompt_tokens - self._cached
        self._prompt_tps = fed / max(self._decode_started - self._prefill_started, 1e-9)

    def _note_reused(self) -> None:
        reused = self._core.cache.reused
        if reused is not None:
            self._cached = reused

    def _response(self, step: Step, piece: TextPiece, last: TextPiece) -> GenerationResponse:
        reader = self._reader
        count = len(reader.tokens)
        seconds = self._last_token - self._decode_started
        return GenerationResponse(
            text=piece.text,
            token=step.token,
            logprobs=step.logprobs,
            from_draft=step.from_draft,
            prompt_tokens=self._plan.length,
            cached_tokens=self._cached,
            prompt_tps=self._prompt_tps,
            generation_tokens=count,
            # The first token belongs to prefill: until there is a second one, there is no rate.
            generation_tps=(count - 1) / max(seconds, 1e-9) if count > 1 else 0.0,
            peak_memory=self._core.cache.peak_memory,
            finish_reason=reader.finish_reason if piece is last else None,
            kind=piece.kind,
        )

    def _yielded(self, response: GenerationResponse) -> GenerationResponse:
        if response.finish_reason is not None:
            self._end()
        return response

    def _end(self) -> None:
        """Stop generating, add what is withheld, and commit the turn; once."""
        if self._ended:
            return
        self._waiting.clear()
        try:
            self._steps.close()
        finally:
            self._ended = True
            if self._started:  # before, `reused` is the turn before's
                self._note_reused()  # a server may report it last
            try:
                self._reader.close()
                self._usage = self.usage
                self._core.commit(self._plan, self._reader, self._usage)
            finally:
                self._hold.disarm()

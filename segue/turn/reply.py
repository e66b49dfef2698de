"""The stream of one turn."""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Set as AbstractSet
from time import perf_counter
from types import TracebackType

from ..config import GenerationConfig
from ..engine import Context, Detokenizer, Step
from ..errors import SessionBusyError
from ..interrupt import InterruptHold
from ..messages import Message
from ..response import FinishReason, GenerationResponse, TextKind
from ..text.stops import StopStrings
from ..text.tags import ReasoningSplitter, TextPart
from ..usage import TurnUsage


class Reply:
    """A reply as it is being generated: an iterator of `GenerationResponse`, and a context manager.

    Made by `ChatSession.stream`. However it ends (eos, length, a stop string, `close`, leaving the
    ``with`` block, garbage collection, an exception, Ctrl-C), it is recorded in the session exactly
    once, with the text said so far. Ctrl-C is delivered between two tokens or two chunks of
    prefill, never inside one.

    Raises (while iterating):
        GenerationError: The model or its runtime failed; what was said until then is recorded.
        SessionBusyError: It is used from inside its own progress callback, or from another thread
            while it runs.
    """

    def __init__(
        self,
        steps: Generator[Step, None, None],
        *,
        context: Context,
        eos_token_ids: AbstractSet[int],
        detokenizer: Detokenizer,
        splitter: ReasoningSplitter,
        config: GenerationConfig,
        prompt_tokens: int,
        cached_tokens: int,
        dropped: tuple[Message, ...],
        record: Callable[[Reply], None],
    ) -> None:
        self._steps = steps
        self._context = context
        self._eos = eos_token_ids
        self._max_tokens = config.max_tokens
        self._detokenizer = detokenizer
        self._stops = StopStrings(config.stop)
        self._splitter = splitter
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._dropped = dropped
        self._record = record
        self._tokens: list[int] = []
        self._pieces: dict[TextKind, list[str]] = {kind: [] for kind in TextKind}
        # Pieces that the newest token made beside the one that was told.
        self._waiting: list[GenerationResponse] = []
        self._finish_reason: FinishReason | None = None
        self._hold = InterruptHold()
        self._running = False
        self._ended = False
        self._prefill_started = 0.0
        self._decode_started = 0.0
        self._last_token = 0.0
        self._usage: TurnUsage | None = None
        self._prompt_tps = 0.0

    @property
    def text(self) -> str:
        """What has been said so far, without reasoning; once ended, what the history records."""
        return "".join(self._pieces[TextKind.ANSWER])

    @property
    def reasoning(self) -> str:
        """What the model has thought so far, where it marks that; recorded with the text."""
        return "".join(self._pieces[TextKind.REASONING])

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids generated so far, a final eos included."""
        return tuple(self._tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the reply ended; ``None`` while it runs, and if it was cut short."""
        return self._finish_reason

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the whole prompt of this turn."""
        return self._prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """How many of those the KV cache held already."""
        return self._cached_tokens

    @property
    def dropped(self) -> tuple[Message, ...]:
        """The messages that left the history so that this turn fits into the model's context."""
        return self._dropped

    @property
    def usage(self) -> TurnUsage:
        """What this turn has cost so far."""
        if self._usage is not None:
            return self._usage
        fed = self._prompt_tokens - self._cached_tokens
        if not self._tokens:
            # Broken off while the prompt was being read: only a part of it may have been.
            fed = max(min(self._context.offset - self._cached_tokens, fed), 0)
        return TurnUsage(
            self._prompt_tokens,
            self._cached_tokens,
            fed,
            len(self._tokens),
            self._decode_started - self._prefill_started if self._tokens else 0.0,
            self._last_token - self._decode_started,
        )

    @property
    def ended(self) -> bool:
        """Whether the reply is over and recorded."""
        return self._ended

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
        """End the reply here and record what was said; nothing more if it has ended.

        Raises:
            SessionBusyError: It is running right now, and this is its own progress callback or
                another thread.
            KeyboardInterrupt: Ctrl-C came during the last token and was not delivered yet.
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
        """Take one step; raises StopIteration where there is none to take."""
        if self._waiting:
            return self._told(self._waiting.pop(0))
        if self._ended:
            raise StopIteration
        if not self._tokens:
            self._prefill_started = perf_counter()
        step = next(self._steps, None)
        now = perf_counter()
        if step is None:
            self._finish_reason = FinishReason.LENGTH
            self._keep(self._split(self._tail(), last=True))
            raise StopIteration
        self._tokens.append(step.token)
        self._last_token = now
        count = len(self._tokens)
        if count == 1:
            fed = self._prompt_tokens - self._cached_tokens
            self._prompt_tps = fed / max(now - self._prefill_started, 1e-9)
            self._decode_started = now
        text = self._read(step.token, last=count == self._max_tokens)
        parts = self._split(text, last=self._finish_reason is not None)
        self._keep(parts)
        responses = [
            GenerationResponse(
                part.text,
                step.token,
                step.logprobs,
                step.from_draft,
                self._prompt_tokens,
                self._cached_tokens,
                self._prompt_tps,
                count,
                # The first token belongs to prefill: until a second one, there is no rate to tell.
                (count - 1) / max(now - self._decode_started, 1e-9) if count > 1 else 0.0,
                self._context.peak_memory,
                self._finish_reason if place == len(parts) else None,
                part.kind,
            )
            for place, part in enumerate(parts, 1)
        ]
        self._waiting = responses[1:]
        return self._told(responses[0])

    def _told(self, response: GenerationResponse) -> GenerationResponse:
        if response.finish_reason is not None:
            self._end()
        return response

    def _split(self, text: str, *, last: bool) -> list[TextPart]:
        """The parts that some text makes certain; one without text if there are none."""
        parts = self._splitter.add(text)
        if last:
            parts += self._splitter.finish()
        return parts or [TextPart(self._splitter.kind, "")]

    def _keep(self, parts: list[TextPart]) -> None:
        for part in parts:
            self._pieces[part.kind].append(part.text)

    def _read(self, token: int, *, last: bool) -> str:
        """The text that a token makes certain; sets the finish reason where it ends the reply."""
        if token in self._eos:
            self._finish_reason = FinishReason.STOP
            return self._tail()
        text = self._stops.add(self._detokenizer.add(token))
        if last and not self._stops.found:
            text += self._tail()
            self._finish_reason = FinishReason.LENGTH
        if self._stops.found:
            self._finish_reason = FinishReason.STOP
        return text

    def _tail(self) -> str:
        """What the detokenizer and the stop strings still withhold."""
        return self._stops.add(self._detokenizer.finish()) + self._stops.finish()

    def _end(self) -> None:
        """Stop generating, flush what is withheld, and record the turn; once."""
        if self._ended:
            return
        self._ended = True
        self._waiting.clear()
        try:
            self._steps.close()
        finally:
            try:
                if self._finish_reason is None:
                    self._keep(self._split(self._tail(), last=True))
                self._usage = self.usage
                self._record(self)
            finally:
                self._hold.disarm()

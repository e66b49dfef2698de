"""An engine of your own: the smallest one that a session can talk to.

This one says every prompt's last word again. `segue.engine` has what else an engine may offer.
"""

from collections.abc import Generator

import segue
from segue.engine import Request, Step
from segue.testing import ToyTokenizer


class EchoContext:
    """One conversation: knows which ids it has read."""

    def __init__(self, tokenizer: ToyTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.reused: int | None = None

    @property
    def offset(self) -> int:
        return len(self._ids)

    def rewind(self, offset: int) -> int:
        del self._ids[offset:]
        return self.offset

    def close(self) -> None:
        self._ids.clear()

    def run(self, request: Request) -> Generator[Step, None, None]:
        self.reused = self.offset
        self._ids = list(request.ids)
        word = self._tokenizer.decode(request.ids).split("<|end|>")[-2].split()[-1]
        for token in [*self._tokenizer.encode(word), self._tokenizer.end_id]:
            self._ids.append(token)
            yield Step(token)


class EchoEngine:
    """The model: makes contexts."""

    name = source = fingerprint = "echo"
    context_length = None

    def __init__(self) -> None:
        self.tokenizer = ToyTokenizer()

    def context(self, cache: segue.CacheConfig) -> EchoContext:
        return EchoContext(self.tokenizer)


session = segue.ChatSession(EchoEngine())
print(session.respond("Hello there"))
print(session.respond("Can you hear me?"))
print(session.usage.cached_tokens, "tokens were not read again")

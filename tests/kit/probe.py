"""Looks inside Segue's objects: the only module of the tests that does.

A test names what it wants to know (the ids in a session's cache, the ids that a draft has read);
where the package keeps that is written here alone. When the inside of the package changes, only
this module has to follow. `package/test_probe.py` fails where another one looks inside.

`of: Layered` is a context of the MLX engine, or a session that has one. The module itself imports
no MLX, as `session_killer` forks processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from segue import ChatSession, TurnUsage
from segue.ledger import TokenLedger
from segue.testing import BareContext

if TYPE_CHECKING:
    import mlx.core as mx
    import pytest

    from segue.cli.chat.chat import TerminalChat
    from segue.engine import Acceptance
    from segue.mlx.context import MlxContext
    from segue.testing import BareEngine

    Layered = ChatSession | MlxContext

# --- sessions -----------------------------------------------------------------------------------


def engine_of(session: ChatSession) -> Any:
    """The engine that the session talks with."""
    return session._core.engine


def ledger_of(session: ChatSession) -> TokenLedger:
    """What the session believes to be in its cache, after an opaque prefix."""
    return session._core.cache.ledger


def ids_of(session: ChatSession) -> tuple[int, ...]:
    """The ids of the session's ledger."""
    return ledger_of(session).ids


def forge(session: ChatSession, token: int) -> None:
    """Have the ledger name another token than the newest that was fed."""
    ledger = ledger_of(session)
    session._core.cache.ledger = TokenLedger(
        (*ledger.ids[:-1], token), ledger.truncate(len(ledger.ids) - 1).text, ledger.seams[:-1]
    )


def context_of(session: ChatSession) -> Any:
    """The session's context."""
    return session._core.cache._context


def held(session: ChatSession) -> tuple[int, ...]:
    """The ids that a fake engine's cache really holds, or that a bare one was sent."""
    context = context_of(session)
    ids = context._sent if isinstance(context, BareContext) else context.cache[0]
    assert context.offset == len(ids)
    return tuple(ids)


def has_opaque_prefix(session: ChatSession) -> bool:
    """Whether the cache begins with a prefix whose tokens are not known."""
    return session._core.cache.opaque


def acceptance_of(session: ChatSession) -> Acceptance:
    """How much was drafted in the session's life, and how much of that accepted."""
    return session._core.cache.acceptance


def forget_history(session: ChatSession) -> None:
    """Leave the session's cache, and nothing of what was said."""
    session._core.conversation = session.conversation.with_messages(())


def forget_turns(session: ChatSession, *, but: int) -> None:
    """Leave the usage of the newest turns alone."""
    del session._core._turns[:-but]


def count_prewarmed(session: ChatSession, tokens: int) -> None:
    """Have the session's usage say that it prewarmed so many tokens."""
    session._core._prewarmed = tokens


def cut_cache(session: ChatSession, offset: int) -> None:
    """Have the session's cache go back to its first tokens, and the ledger with it."""
    context_of(session).rewind(offset)
    session._core.cache.commit()


def give_cache(session: ChatSession, context: Any, ids: Sequence[int], text: str) -> None:
    """Give the session a context that has read these ids, and a ledger of this text."""
    cache = session._core.cache
    cache._hold(context)
    cache.prefix = getattr(context, "prefix", 0)
    cache.ledger = TokenLedger().extend(ids, text)


def computed_by(engine: BareEngine) -> list[tuple[int, ...]]:
    """The sequences of ids that a bare engine has in its own cache."""
    return list(engine._computed)


def no_usage(cached: int) -> TurnUsage:
    """The usage of a turn that nobody timed."""
    return TurnUsage(
        prompt_tokens=cached,
        cached_tokens=cached,
        fed_tokens=0,
        generated_tokens=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
    )


# --- contexts of the MLX engine -----------------------------------------------------------------


def _state(of: Layered) -> Any:
    context: Any = context_of(of) if isinstance(of, ChatSession) else of
    return context._state


def layers_of(of: Layered) -> list[Any]:
    """The caches, one a layer, ready to be read: rows shared with forks are put together."""
    layers: list[Any] = _state(of).layers
    return layers


def resting_layers(of: Layered) -> list[Any]:
    """The caches as they rest between turns: rows shared with forks are elsewhere.

    The list is the context's own: what is put into it is in the cache.
    """
    layers: list[Any] = _state(of)._layers
    return layers


def shares_rows(of: Layered) -> bool:
    """Whether rows of the caches are kept where forks share them."""
    return _state(of)._sharing is not None


def put_layers(of: Layered, layers: list[Any], offset: int) -> None:
    """Have the context hold these caches of so many tokens, and no checkpoints."""
    _state(of).replace(layers, offset)


def model_of(of: Layered) -> Any:
    """The model that the context runs."""
    return _state(of).model


def put_model(of: Layered, model: Any) -> None:
    """Have the context run another model, a failing one perhaps."""
    _state(of).model = model


def next_logits(of: Layered, probe: int = 65, *, model: Any = None) -> mx.array:
    """The logits after one more token. Nothing changes; `model` runs instead of the context's."""
    import mlx.core as mx

    state = _state(of)
    layers = copy.deepcopy(state.layers)
    logits: mx.array = (model or state.model)(mx.array([[probe]]), cache=layers)[0, -1]
    state.release()
    return logits


# --- drafts -------------------------------------------------------------------------------------


def _draft(of: Layered) -> Any:
    context: Any = context_of(of) if isinstance(of, ChatSession) else of
    return context._speculation.drafter


def has_draft_model(of: Layered) -> bool:
    """Whether a model drafts: not the prompt lookup, and not nobody."""
    return hasattr(_draft(of), "_cached")


def draft_ids(of: Layered) -> list[int]:
    """The ids that the draft has read: those in its model's cache, or those it looks up."""
    draft = _draft(of)
    return list(draft._cached if has_draft_model(of) else draft._lookup._ids)


def draft_offset(of: Layered) -> int:
    """How many tokens the caches of the draft's model hold."""
    offset: int = _draft(of)._state.offset
    return offset


def draft_layers(of: Layered) -> list[Any]:
    """The caches of the draft's model, one a layer."""
    layers: list[Any] = _draft(of)._state.layers
    return layers


def draft_model(of: Layered) -> Any:
    """The draft's model."""
    return _draft(of)._state.model


# --- engines ------------------------------------------------------------------------------------


def pretend_fingerprint(engine: Any, fingerprint: str) -> None:
    """Have an engine say that it is the one of this fingerprint."""
    engine.__dict__["_fingerprint"] = fingerprint


# --- modules ------------------------------------------------------------------------------------


def accept_by(monkeypatch: pytest.MonkeyPatch, rule: Callable[..., Any]) -> None:
    """Have another rule say which drafted tokens are accepted, and what is drawn instead."""
    monkeypatch.setattr("segue.mlx.sampling._accept_or_redraw", rule)


def draft_with_the_seed_of_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have drafts draw from the very randomness that replies do."""
    monkeypatch.setattr("segue.mlx.sampling._DRAFT_SEED", 0)


def pretend_threads(monkeypatch: pytest.MonkeyPatch, ids: set[int]) -> None:
    """Have these threads be the ones that ran a model."""
    monkeypatch.setattr("segue.mlx.process.threads._used", ids)


def wait_for_threads() -> None:
    """Do what the program's end does: wait for the threads that ran a model."""
    from segue.mlx.process import threads

    threads._wait_for_threads()


# --- the command --------------------------------------------------------------------------------


def show_warnings_as_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have warnings shown as the command shows them."""
    from segue.cli import main

    monkeypatch.setattr("warnings.showwarning", main._show_warning)


def pretend_signal(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have a signal have asked the command to end, and its Ctrl-C be lost."""
    monkeypatch.setattr("segue.cli.process.termination._received", number)


def prompter_of(chat: TerminalChat) -> Any:
    """What asks the chat's person for the next line."""
    return chat._prompter


# --- mlx-lm -------------------------------------------------------------------------------------


def hugging_face(tokenizer: Any) -> Any:
    """The Hugging Face tokenizer in mlx-lm's wrapper."""
    return tokenizer._tokenizer


def rope_frequencies(rope: Any) -> mx.array:
    """The frequencies of a model's rotary embedding."""
    frequencies: mx.array = rope._freqs
    return frequencies


# --- grammars -----------------------------------------------------------------------------------


class _Unforced:
    """A matcher that never says what must come."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def forced(self, most: int = 0) -> list[int]:
        return []

    def fork(self) -> _Unforced:
        return _Unforced(self._matcher.fork())


def force_nothing(context: Any) -> None:
    """Have a context's grammars mask tokens alone, from now on."""
    make = context._make_matcher
    context._make_matcher = lambda grammar: _Unforced(make(grammar))


def note_passes(context: Any) -> list[int]:
    """A list that gets the number of tokens of each pass from now on."""
    state, passes = _state(context), []
    feed = state.feed

    def noted(ids: Any) -> Any:
        passes.append(ids.size)
        return feed(ids)

    state.feed = noted
    return passes

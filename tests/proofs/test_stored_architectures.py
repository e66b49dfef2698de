"""Models of every type: stored and restored, or forked, they go on as if nothing was."""

from __future__ import annotations

import mlx.core as mx
import pytest

from kit import architectures
from kit.architectures import DATA, NO_DATA
from kit.contexts import Line, cache_of, config_of, through_a_file, words


@pytest.mark.skipif(DATA is None, reason=NO_DATA)
@pytest.mark.parametrize("name", architectures.configurations() or [None])
def test_parts_and_forks(name):
    try:
        engine = architectures.make_engine(name)
        line = Line(engine.context(cache_of("full")))
        line.say(words(1, 30), config_of())
    except Exception as error:
        # Only where there is no other way to compute it, as the page says.
        if name != "bitnet" or "Metal" not in str(error):
            raise
        pytest.skip(str(error))
    again = Line(engine.context(cache_of("full")), line.ids)
    assert again.context.restore(through_a_file(line.context.stored())) == {}
    assert again.context.checkpoints.offsets == line.context.checkpoints.offsets
    fork = line.fork()
    replies = [each.say(words(2, 9), config_of()) for each in (line, again, fork)]
    assert replies[1:] == replies[:1] * 2
    assert mx.array_equal(again.logits(), line.logits())
    assert mx.array_equal(fork.logits(), line.logits())

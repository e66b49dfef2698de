"""Writes docs/architectures.md: what became of each model type of mlx-lm in a scripted talk.

Needs SEGUE_DATA, as the tests do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# As in the tests: how a BLAS shares a product among threads decides its last bits.
os.environ.setdefault("MKL_NUM_THREADS", "1")

import segue.mlx  # noqa: F401 (puts a good BLAS in place before MLX is imported)

TARGET = Path(__file__).with_name("architectures.md")
sys.path.insert(0, str(TARGET.parent.parent / "tests"))

from kit.architectures import (  # noqa: E402
    DATA,
    EXACT,
    FED_ONLY,
    NO_DATA,
    SETUPS,
    CannotRunError,
    configurations,
    examine,
)

TEXT = """\
# Architectures

Written by `docs/make_architectures.py`: models of {count} types that mlx-lm knows, with small
settings and random weights, hold a scripted conversation. A reply is broken off after two tokens
and another before its first; an earlier message is changed; the instructions change; the
conversation is cleared; and all is longer than every window. After every turn

- the model was fed exactly the tokens that had to be: those after the longest common prefix of the
  prompt and what the cache held, or after the best checkpoint before its end where layers can't be
  trimmed there. The test works out both by itself, from the ids alone;
- the next token's logits were those of a fresh cache that read the same in one go, with the same
  greedy token. The largest relative error was {worst:.0e}, in float32 on a CPU; {tolerance} is what
  the test lets pass.

Then the same with `max_kv_size`, and with `kv_bits` from the first token on and from the 60th.

Quantized caches hold numbers rounded to steps, and a number between two steps goes to either,
depending on what else was in its pass: so mlx-lm alone, fed in two parts, is not quite what it is
when fed in one. Where that put the logits further off than {tolerance} (by {rounded:.0e} at most),
they were compared with mlx-lm's own after the very same passes.

"yes": all of this held. "{fed_only}": the tokens fed were the right ones, but the logits can't be
compared: mlx-lm's own depend on the parts it is fed in (see below). "refused": a
`ConfigurationError` says so before anything is fed, because of

- no plain layer: there is no layer with a `KVCache` of its own;
- windows: mlx-lm quantizes no `RotatingKVCache`;
- head size: it is not divisible by a group size (these are small models; larger ones of the same
  type may do);
- model's own attention: the model's code takes no quantized cache.

"any place": each layer can always drop its newest tokens. "marks": some layers can't, or not once
their window is full.

{table}

Not compared:

{dependent}

Not run:

{unable}
"""


def render() -> str:
    """The page."""
    rows = [
        f"| model type | caches | comes back to | {' | '.join(SETUPS)} |",
        "|---" * (3 + len(SETUPS)) + "|",
    ]
    unable, dependent = [], []
    worst = rounded = 0.0
    for name in configurations():
        try:
            result = examine(name)
        except CannotRunError as error:
            unable.append(f"- {name}: {error}")
            continue
        rows.append(result.row(name))
        worst, rounded = max(worst, result.worst), max(rounded, result.rounded)
        if FED_ONLY in result.outcomes.values():
            dependent.append(
                f"- {name} without Segue: fed in parts, the logits are off by "
                f"{result.own_error:.0e} of those in one pass."
            )
        elif result.outcomes["as they are"] != EXACT:
            raise AssertionError(name)
    return TEXT.format(
        count=len(configurations()),
        worst=worst,
        rounded=rounded,
        tolerance="1e-4",
        fed_only=FED_ONLY,
        table="\n".join(rows),
        dependent="\n".join(dependent) or "Nothing.",
        unable="\n".join(unable) or "Nothing.",
    )


if __name__ == "__main__":
    if DATA is None:
        sys.exit(f"{NO_DATA}.")
    TARGET.write_text(render(), encoding="utf-8")

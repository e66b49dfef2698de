"""Stand-ins for models, for the tests of programs that use Segue; no downloads.

None of them needs MLX but `CachingModel`, which is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bare import BareContext, BareEngine
from .fake import FakeContext, FakeEngine
from .script import ScriptedModel
from .tokenizer import ToyDetokenizer, ToyTokenizer

if TYPE_CHECKING:
    from .mlx import CachingModel as CachingModel

__all__ = [
    "BareContext",
    "BareEngine",
    "FakeContext",
    "FakeEngine",
    "ScriptedModel",
    "ToyDetokenizer",
    "ToyTokenizer",
]

for _name in __all__:
    globals()[_name].__module__ = __name__


def __getattr__(name: str) -> Any:
    """Return `CachingModel`, which needs MLX, when first asked for."""
    # Not among the names above: importing those asks for all of them.
    if name == "CachingModel":
        from .mlx import CachingModel

        return CachingModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "CachingModel"])

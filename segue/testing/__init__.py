"""Stand-ins for models, for the tests of programs that use Segue; no MLX, no downloads."""

from .bare import BareContext, BareEngine
from .fake import FakeContext, FakeEngine
from .script import ScriptedModel
from .tokenizer import ToyDetokenizer, ToyTokenizer

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

"""Stand-ins for models, for the tests of programs that use Segue; no MLX, no downloads."""

from .fake import FakeContext, FakeEngine, ScriptedModel
from .tokenizer import ToyTokenizer

__all__ = ["FakeContext", "FakeEngine", "ScriptedModel", "ToyTokenizer"]

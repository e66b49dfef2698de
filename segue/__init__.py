"""Multi-turn conversations with local language models that never read a token twice.

What is public is here, in `segue.engine` (for those who write an engine) and in `segue.testing`
(for the tests of programs). All other modules are private, and change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import CacheConfig, GenerationConfig
from .conversation import Conversation
from .errors import (
    AnswerError,
    BackendMissingError,
    ConfigurationError,
    ContextLengthError,
    ForkedProcessError,
    GenerationError,
    GrammarError,
    HistoryError,
    LostWordsError,
    MessageError,
    MissingTemplateError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
    ModelWarning,
    PerformanceWarning,
    PromptCacheError,
    PromptCacheFormatError,
    PromptCacheMismatchError,
    SegueError,
    SessionBusyError,
    SessionFileError,
    SessionFileFormatError,
    SessionLockedError,
    SessionNotFoundError,
    SessionWarning,
    TemplateError,
    TemplateWarning,
    UnknownArgumentError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from .grammar.schema import Lark, Regex
from .messages import Message, Role, Text
from .prompt_cache import PromptCache
from .response import FinishReason, GenerationResponse, TextKind
from .session import ChatSession
from .store.prompt_cache import load_prompt_cache
from .store.session_file import SessionFile
from .tool_call import ToolCall
from .turn.reply import Reply
from .usage import MissReason, Reuse, TurnPreview, TurnUsage, Usage

if TYPE_CHECKING:
    from .loading import load
    from .mlx.engine import MlxEngine

__version__ = "0.1.0"

__all__ = [
    "AnswerError",
    "BackendMissingError",
    "CacheConfig",
    "ChatSession",
    "ConfigurationError",
    "ContextLengthError",
    "Conversation",
    "FinishReason",
    "ForkedProcessError",
    "GenerationConfig",
    "GenerationError",
    "GenerationResponse",
    "GrammarError",
    "HistoryError",
    "Lark",
    "LostWordsError",
    "Message",
    "MessageError",
    "MissReason",
    "MissingTemplateError",
    "MlxEngine",
    "ModelFormatError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelWarning",
    "PerformanceWarning",
    "PromptCache",
    "PromptCacheError",
    "PromptCacheFormatError",
    "PromptCacheMismatchError",
    "Regex",
    "Reply",
    "Reuse",
    "Role",
    "SegueError",
    "SessionBusyError",
    "SessionFile",
    "SessionFileError",
    "SessionFileFormatError",
    "SessionLockedError",
    "SessionNotFoundError",
    "SessionWarning",
    "TemplateError",
    "TemplateWarning",
    "Text",
    "TextKind",
    "ToolCall",
    "TurnPreview",
    "TurnUsage",
    "UnknownArgumentError",
    "UnsupportedFeatureError",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "load",
    "load_prompt_cache",
]


for _name in __all__:
    # So that a traceback, and repr, name what programs import.
    if getattr(globals().get(_name), "__module__", "").startswith(f"{__name__}."):
        globals()[_name].__module__ = __name__


def __getattr__(name: str) -> Any:
    """Return `load` and `MlxEngine`, which need more than the core, when first asked for."""
    if name == "load":
        from .loading import load

        load.__module__ = __name__
        return load
    if name == "MlxEngine":
        from .mlx.loading import require_backend

        require_backend()
        from .mlx.engine import MlxEngine

        MlxEngine.__module__ = __name__
        return MlxEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

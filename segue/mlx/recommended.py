"""What a model folder says about replies: generation_config.json.

The file is a publisher's, and a bad one must not keep a good model from loading. mlx-lm reads it,
too, for the ids that end replies, and fails on one that isn't an object: such a model is loaded
from a folder of links that lacks the file.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ModelWarning, cause
from ..files.json_text import read_object

NAME = "generation_config.json"
# Published ones have a few hundred bytes.
LARGEST = 2**20


def read_recommendations(path: Path) -> dict[str, Any] | None:
    """Return what a generation_config.json says; empty without the file, ``None`` if it is bad.

    Warns:
        ModelWarning: if the file can't be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError("it is too large")
        found = read_object(data.decode())
        _check_ends(found)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path} can't be read, and is left out: {cause(error)}.", ModelWarning, stacklevel=2
        )
        return None
    return found


def _check_ends(found: dict[str, Any]) -> None:
    ends = found.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (type(end) is not int or end < 0):
            raise ValueError(f"eos_token_id must be token ids, not {ends!r:.80}")


@contextmanager
def without_recommendations(folder: Path) -> Iterator[Path]:
    """Yield a folder of links to a model's files, its generation_config.json left out."""
    with tempfile.TemporaryDirectory(prefix="segue-") as name:
        for file in folder.iterdir():
            if file.name != NAME:
                os.symlink(file.absolute(), Path(name, file.name))
        yield Path(name)

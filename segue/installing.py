"""Commands that install what Segue lacks, from where this copy of it came.

How it works: Segue may run from a checkout, or be installed from one, from a repository or from an
index. Pip records which in ``direct_url.json``; an installation from an index has no such file. The
command names that same place, so that it installs this Segue's extra and not another package of the
name. If the place is gone, it names what the extra would install.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "segue"
PACKAGE = Path(__file__).parent
# If nothing else is known; as pyproject.toml has them.
REQUIREMENTS = {
    "cpu": ("mlx[cpu]", "mkl"),
    "cuda12": ("mlx[cuda12]",),
    "cuda13": ("mlx[cuda13]",),
}


def install_command(extra: str) -> str:
    """Return a shell command that installs what an extra of Segue names.

    Examples:
        >>> install_command("cpu").startswith("pip install ")
        True
    """
    return f"pip install {_what(extra)}"


def _what(extra: str) -> str:
    checkout = PACKAGE.parent
    if _is_ours(checkout):
        return f"--editable {shlex.quote(f'{checkout}[{extra}]')}"
    try:
        distribution = metadata.distribution(NAME)
        origin = json.loads(distribution.read_text("direct_url.json") or "null")
    except metadata.PackageNotFoundError:
        return _requirements(extra)
    except (OSError, ValueError):
        origin = {}
    if origin is None:  # from an index
        return shlex.quote(f"{NAME}[{extra}]")
    return _from_origin(origin, extra) or _requirements(extra)


def _from_origin(origin: Any, extra: str) -> str | None:
    """Return what to install from where pip did; ``None`` if that is gone, or not understood."""
    if not isinstance(origin, dict) or not isinstance(url := origin.get("url"), str):
        return None
    repository = origin.get("vcs_info")
    if isinstance(repository, dict):
        at = repository.get("requested_revision") or repository.get("commit_id")
        return shlex.quote(
            f"{NAME}[{extra}] @ {repository.get('vcs')}+{url}" + (f"@{at}" * bool(at))
        )
    if url.startswith("file:"):
        path = Path(url2pathname(urlsplit(url).path))
        return shlex.quote(f"{path}[{extra}]") if path.exists() else None
    return shlex.quote(f"{NAME}[{extra}] @ {url}")


def _is_ours(folder: Path) -> bool:
    """Return True for a checkout of Segue."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(rf'^name = "{NAME}"$', text, re.MULTILINE) is not None


def _requirements(extra: str) -> str:
    """Return what the extra would install, itself."""
    return " ".join(map(shlex.quote, REQUIREMENTS[extra]))

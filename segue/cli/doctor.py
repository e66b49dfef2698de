"""``segue doctor``: what models run on here, and what would make them faster."""

from __future__ import annotations

import platform
from importlib import metadata

from ..errors import ModelNotFoundError

DISTRIBUTIONS = ("segue", "mlx", "mlx-lm", "transformers")


def report() -> str:
    """Return the findings, one to a line, and then the advice.

    Raises:
        BackendMissingError: if no engine is installed.
    """
    from ..loading import diagnose
    from ..names import DEFAULT_MODEL, find

    found = diagnose()
    facts, advice = [*found.facts], [*found.advice]
    try:
        facts.append((DEFAULT_MODEL, str(find(DEFAULT_MODEL))))
    except ModelNotFoundError as error:
        facts.append((DEFAULT_MODEL, "not installed"))
        advice.append(str(error))
    facts += [(name, _version(name)) for name in DISTRIBUTIONS]
    facts.append(("python", platform.python_version()))
    width = max(len(name) for name, _ in facts)
    shown = [f"{name:<{width}}  {value}" for name, value in facts]
    shown += ["", *(advice or ["Found nothing that would make this machine faster."])]
    return "\n".join(shown)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"

"""An environment of its own for each peer that needs one.

    python -m benchmarks.environments

makes what is missing: `.venv-llamacpp` and `.venv-transformers` beside the project's own.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = ("llamacpp", "transformers")


def python(name: str | None) -> Path:
    """The Python of an environment; this one, where none is named."""
    if name is None:
        return Path(sys.executable)
    return ROOT / f".venv-{name}" / "bin" / "python"


def make(name: str) -> None:
    """Make an environment, unless it is as its requirements say."""
    required = (REQUIREMENTS / f"{name}.txt").read_text()
    ready = ROOT / f".venv-{name}" / "ready"
    if ready.exists() and ready.read_text() == required:
        return
    print(f"Making .venv-{name} ...", flush=True)
    venv.create(ROOT / f".venv-{name}", clear=True, with_pip=True)
    command = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "-r", str(REQUIREMENTS / f"{name}.txt")], check=True)
    ready.write_text(required)


def main() -> int:
    for name in NAMES:
        try:
            make(name)
        except subprocess.CalledProcessError as error:
            # The page says then that this peer is missing, and why.
            print(f"No .venv-{name}: pip ended with {error.returncode}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

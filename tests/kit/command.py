"""The segue command, run in this process, or by a shell in another."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
from rich.console import Console

from segue.cli import main as cli


def run(*arguments: str) -> int:
    showwarning = warnings.showwarning
    try:
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
    finally:
        warnings.showwarning = showwarning
    return done.value.code


def shown(capsys, *arguments: str) -> str:
    assert run(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def complaint(capsys, *arguments: str) -> str:
    """What a failing command says: one line on standard error, nothing else, and exit code 2."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("segue: ")
    assert err.count("\n") == 1
    return err


def terminal(monkeypatch, width: int):
    """What Rich takes for a terminal of that width."""

    class Terminal(Console):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, force_terminal=True, width=width, color_system=None)

    monkeypatch.setattr("segue.cli.sessions.list.Console", Terminal)
    monkeypatch.setattr("rich.console.Console", Terminal)


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    line = command.replace("segue", f"{sys.executable} -m segue.cli.main")
    return subprocess.run(["bash", "-c", line], capture_output=True, timeout=120)

"""Saved sessions, and what the command tells of them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from segue import Message
from segue.cli.sessions.folder import session_path
from segue.conversation import Conversation
from segue.ledger import TokenLedger
from segue.store.session_layout import Origin, write_session_file
from segue.store.texts import ledger_to_json, usage_to_json
from segue.usage import Usage

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "é"}}}
TALK = (Message.user("How do  rivers\nflow?"), Message.assistant("*Down*."))

HOLDER = """
import sys
from segue.files.lock import FileLock

lock = FileLock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path):
    """Has another process hold a session; the id of that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        yield holder.pid
        holder.stdin.close()


def write(name, *history, days=0.0, tokens=0, model="smollm2", instructions=None, usage=Usage()):  # noqa: B008
    """A session file, written so many days ago."""
    path = session_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        "settings": "{}",
        "usage": usage_to_json(usage),
        "origin": Origin(model, "print", NOW - timedelta(days=days)).to_json(),
    }
    if tokens:
        texts["tokens"] = ledger_to_json(TokenLedger(tuple(range(tokens))))
    write_session_file(path, Conversation(instructions, tuple(history)), texts, {})
    return path

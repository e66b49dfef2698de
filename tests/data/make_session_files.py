"""Writes the session files of version 1 in tests/data/sessions, for test_session_versions.py.

They were made once and must open forever: don't make them anew, add others beside them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "sessions"
sys.path[:0] = [str(Path(__file__).parent.parent)]

from kit.old_sessions import SESSIONS, next_token  # noqa: E402
from kit.settings import arguments  # noqa: E402
from segue import ChatSession, load_prompt_cache  # noqa: E402
from segue.testing import FakeEngine  # noqa: E402


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, made in SESSIONS.items():
        path = FOLDER / f"v1-{name}.segue"
        if path.exists():
            continue
        engine = FakeEngine(next_token, trimmable=made.trimmable)
        cache = None
        if made.prefix:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "prefix"
                place.write_text(f'{{"ids": {list(made.prefix)}, "metadata": {{}}}}')
                cache = load_prompt_cache(place, engine)
        with ChatSession(
            engine,
            instructions=made.instructions,
            history=made.history,
            **arguments(**made.generation),
            template_kwargs=made.template_kwargs,
            on_overflow=made.on_overflow,
            prompt_cache=cache,
        ) as session:
            for question in made.questions:
                session.respond(question)
            session.save(path, kv=made.kv)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()

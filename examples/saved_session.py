"""A session that another process continues. Run it twice."""

from pathlib import Path

import segue

PATH = Path("colours.segue")

engine = segue.load("smollm2")
if PATH.exists():
    session = segue.ChatSession.open(PATH, engine)
    print(f"{len(session.history)} messages, {session.cached_tokens} tokens cached")
else:
    session = segue.ChatSession(engine, generation=segue.GenerationConfig(max_tokens=20))
print(session.respond("Name a colour that you have not named yet."))
print("tokens read:", session.usage.turns[-1].fed_tokens)
session.save(PATH)

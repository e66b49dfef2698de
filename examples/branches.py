"""Going back, and two branches that share what they have in common."""

import segue

session = segue.ChatSession(
    segue.load("smollm2"), generation=segue.GenerationConfig(max_tokens=20, seed=1)
)
print(session.respond("Name a colour."))
print("another one:", session.retry(temperature=1.0))

session.edit(0, "Name a planet.")
print("edited:", session.retry())

branch = session.fork()
print("one branch:", session.respond("And a star?"))
print("the other:", branch.respond("And a moon?"))

session.undo()
assert session.history == branch.history[:2]

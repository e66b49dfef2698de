"""What is said in the workloads.

From the folder that `SEGUE_DATA` names, where it is set: multi-turn dialogues of MT-Bench-101. Else
from a small set that we wrote. Documents are made of the same texts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

OURS = [
    [
        ("I want to bake bread. What do I need?", "Flour, water, salt and some yeast."),
        ("How long must the dough rest?", "About twelve hours in a cool place, covered."),
        ("And if my kitchen is warm?", "Then six hours are enough; look whether it has doubled."),
        ("How do I know that it is done?", "Knock on its bottom: a hollow sound means it is."),
    ],
    [
        ("Which planet has the most moons?", "Saturn, as far as anyone has counted."),
        ("How were they found?", "Most of them in pictures taken one night after another."),
        ("Could people live on one of them?", "Not without bringing air, warmth and water."),
        ("Name the largest one.", "Titan, which is larger than the planet Mercury."),
    ],
    [
        ("My bicycle makes a noise when I brake.", "Is it a squeal, or rather a grinding?"),
        ("A squeal, mostly in the rain.", "Then the pads are wet or worn. Clean the rims first."),
        ("I did that last week.", "Then turn the pads a little, so that their fronts touch first."),
        ("How much is a new pair?", "A good pair costs about as much as a simple lunch."),
    ],
    [
        ("Write the first line of a poem about rivers.", "A river never reads its own name twice."),
        ("Make it shorter.", "No river reads its name twice."),
        ("Now one about stones.", "Stones wait, and the water does the talking."),
        ("Which of the two is better?", "The first, since it can be said in one breath."),
    ],
    [
        ("A train leaves at nine and takes three hours.", "Then it arrives at noon."),
        ("What if it starts half an hour late?", "Then it arrives at half past twelve."),
        ("And it makes up ten minutes on the way?", "Then at twenty past twelve."),
        ("My bus leaves at a quarter past.", "You would miss it by five minutes."),
    ],
    [
        ("Help me to plan a day in a small town.", "What do you like: walking, food, museums?"),
        ("Walking, and something to eat.", "Begin at the river, and be at the market at noon."),
        ("What if it rains?", "Then see the church first: it has a roof and fine windows."),
        ("Where do I find the bus back?", "Behind the station, and the last one leaves at ten."),
    ],
]


@dataclass(frozen=True)
class Texts:
    """Dialogues, and what workloads make of them.

    Attributes:
        source: Where the dialogues come from, for the page.
        dialogues: Dialogues, each a list of questions and answers.
    """

    source: str
    dialogues: list[list[tuple[str, str]]]

    def questions(self, count: int, *, start: int = 0) -> list[str]:
        """So many questions of consecutive dialogues, from the one numbered `start` on."""
        ordered = self.dialogues[start:] + self.dialogues[:start]
        said = [question for dialogue in ordered for question, _ in dialogue]
        return list(islice(cycle(said), count))

    def document(self, characters: int) -> str:
        """A text of at least so many characters, in numbered parts of a dialogue each."""
        parts: list[str] = []
        for number, dialogue in enumerate(cycle(self.dialogues), 1):
            lines = [f"A: {question}\nB: {answer}" for question, answer in dialogue]
            parts.append(f"Part {number}\n" + "\n".join(lines))
            if sum(map(len, parts)) >= characters:
                return "\n\n".join(parts)
        raise AssertionError("there are no dialogues")


def load_texts() -> Texts:
    """The dialogues beside the project, or our own."""
    folder = os.environ.get("SEGUE_DATA")
    path = Path(folder, "conversations", "mt-bench-101-sample.jsonl") if folder else None
    if path is None or not path.is_file():
        return our_texts()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    dialogues = [[(turn["user"], turn["assistant"]) for turn in row["turns"]] for row in rows]
    return Texts(f"{len(rows)} dialogues of MT-Bench-101", dialogues)


def our_texts() -> Texts:
    """The dialogues that we wrote."""
    return Texts(f"{len(OURS)} dialogues written for this benchmark", OURS)

"""What is done in each workload: steps of a conversation, with fixed seeds.

Nothing here knows an engine. `Conversation` is the bookkeeping that any client of a stateless
interface does: which messages a step asks the model to answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.texts import Texts

# What the model is told in front; the tools template writes its own.
INSTRUCTIONS = "You are a helpful assistant. Answer in one short sentence."
# A token of English is about so many characters.
CHARACTERS_PER_TOKEN = 4.1


@dataclass(frozen=True)
class Step:
    """One turn, or what is done instead of one.

    Attributes:
        kind: ``say`` and ``tool`` add a message and ask for a reply; ``regenerate`` asks for
            another reply to the same; ``edit`` changes the message numbered `index`, drops what
            follows it and asks for a reply. ``mark`` notes a place, ``branch`` begins a new branch
            there, ``restart`` ends the process and goes on in a new one: none of them has a reply.
        text: What is said.
        index: Which message an edit changes, instructions not counted.
        max_tokens: How long the reply may be.
        cut: The reply is left after so many tokens.
        seed: The reply's seed.
    """

    kind: str
    text: str = ""
    index: int = 0
    max_tokens: int = 12
    cut: int | None = None
    seed: int = 0

    @property
    def replies(self) -> bool:
        """Whether the model is asked for a reply."""
        return self.kind not in ("mark", "branch", "restart")

    def to_json(self) -> dict[str, Any]:
        """As a peer gets it."""
        return asdict(self)


@dataclass(frozen=True)
class Workload:
    """A conversation to have.

    Attributes:
        number: Its number on the page.
        name: A word for it.
        title: What happens in it.
        model: ``smollm2``, ``sliding`` or ``hybrid``.
        template: A name in `chat_templates`.
        steps: What is done.
        temperature: Of every reply.
        instructions: The system message.
        tools: What the template is told of tools.
    """

    number: int
    name: str
    title: str
    steps: tuple[Step, ...]
    model: str = "smollm2"
    template: str = "plain"
    temperature: float = 0.0
    instructions: str | None = INSTRUCTIONS
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def turns(self) -> int:
        """How many replies are asked for."""
        return sum(step.replies for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """As a peer gets it: all but the steps."""
        return {
            key: value for key, value in asdict(self).items() if key not in ("steps", "number")
        } | {"tools": list(self.tools)}


class Conversation:
    """The messages of one conversation, with its branches."""

    def __init__(self, instructions: str | None) -> None:
        system = [] if instructions is None else [{"role": "system", "content": instructions}]
        self._system: list[dict[str, str]] = system
        self._history: list[dict[str, str]] = []
        self._marked: list[dict[str, str]] = []

    def begin(self, step: Step) -> list[dict[str, str]]:
        """Do a step as far as its question; all messages, instructions included."""
        history = self._history
        if step.kind == "mark":
            self._marked = list(history)
        elif step.kind == "branch":
            self._history = list(self._marked)
        elif step.kind == "regenerate":
            history.pop()
        elif step.kind == "edit":
            history[step.index :] = [{**history[step.index], "content": step.text}]
        elif step.kind == "tool":
            history.append({"role": "tool", "name": "lookup", "content": step.text})
        elif step.kind == "say":
            history.append({"role": "user", "content": step.text})
        return [*self._system, *self._history]

    def end(self, text: str) -> None:
        """Record the reply."""
        self._history.append({"role": "assistant", "content": text})


def plain_chat(texts: Texts, turns: int, *, tokens: int = 12, start: int = 0) -> list[Step]:
    """Questions, one after another."""
    return [
        Step("say", question, max_tokens=tokens, seed=turn)
        for turn, question in enumerate(texts.questions(turns, start=start))
    ]


def cut_short(steps: list[Step]) -> list[Step]:
    """Every second reply is left after five tokens, long before it would end."""
    return [
        replace(step, cut=5, max_tokens=64) if turn % 2 else step for turn, step in enumerate(steps)
    ]


def with_second_thoughts(steps: list[Step]) -> list[Step]:
    """After every third turn, in turns: another reply, or the question before it changed."""
    done: list[Step] = []
    messages = 0
    for turn, step in enumerate(steps, 1):
        done.append(step)
        messages += 2
        if turn % 6 == 3:
            done.append(replace(step, kind="regenerate", text="", seed=100 + turn))
        elif turn % 6 == 0:
            index = messages - 4
            text = f"Let me ask otherwise. {step.text}"
            done.append(replace(step, kind="edit", index=index, text=text, seed=100 + turn))
            messages = index + 2
    return done


def with_restarts(steps: list[Step]) -> list[Step]:
    """A new process after every turn but the last."""
    return [part for step in steps for part in (step, Step("restart"))][:-1]


def tool_calls(turns: int, *, tokens: int = 12) -> list[Step]:
    """Questions and results of tools, in turns."""
    towns = ("Oslo", "Lima", "Cairo", "Perth", "Kyoto", "Quito", "Riga", "Tunis")
    steps: list[Step] = []
    for number in range(-(-turns // 2)):
        town = towns[number % len(towns)]
        steps.append(Step("say", f"What is the weather in {town}?", max_tokens=tokens))
        result = f'{{"town": "{town}", "celsius": {10 + number}, "sky": "clear"}}'
        steps.append(Step("tool", result, max_tokens=tokens))
    return steps[:turns]


def branches(texts: Texts, *, tokens: int, count: int, prefix: int) -> list[Step]:
    """One long opening turn, and branches of two turns from there."""
    text = texts.document(round(prefix * CHARACTERS_PER_TOKEN))
    steps = [Step("say", f"{text}\n\nGive this a title.", max_tokens=tokens), Step("mark")]
    questions = texts.questions(2 * count, start=5)
    for number in range(count):
        pair = questions[2 * number : 2 * number + 2]
        steps += [
            Step("branch"),
            *(Step("say", text, max_tokens=tokens, seed=number) for text in pair),
        ]
    return steps


def about_a_document(texts: Texts, *, tokens: int, length: int, questions: int) -> list[Step]:
    """A document, and questions about it, the first one together with it."""
    text = texts.document(round(length * CHARACTERS_PER_TOKEN))
    asked = [f"Name one thing that part {number} is about." for number in range(1, questions + 1)]
    return [
        Step("say", f"{text}\n\n{question}" if not number else question, max_tokens=tokens)
        for number, question in enumerate(asked)
    ]


def growing(turns: int, *, tokens: int = 4) -> list[Step]:
    """Messages of equal length: two digits are two tokens, whichever they are."""
    return [
        Step("say", f"Say one word about the number {10 + turn}.", max_tokens=tokens)
        for turn in range(turns)
    ]


LOOKUP = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "looks up the weather in a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}


def all_workloads(texts: Texts, *, quick: bool = False) -> list[Workload]:
    """The twelve, or, for a smoke run, short ones of their kind."""

    def turns(count: int) -> int:
        return min(count, 3) if quick else count

    def length(tokens: int) -> int:
        return min(tokens, 200) if quick else tokens

    def made(number: int, name: str, title: str, steps: list[Step], **rest: Any) -> Workload:
        return Workload(number, name, title, tuple(steps), **rest)

    chat = plain_chat(texts, turns(12))
    thoughts = with_second_thoughts(plain_chat(texts, 6 if quick else 12, start=9))
    forks = branches(texts, tokens=8, count=2 if quick else 5, prefix=length(1500))
    pages = about_a_document(texts, tokens=8, length=length(4000), questions=turns(10))
    window = cut_short(plain_chat(texts, 6 if quick else 12, start=18))
    return [
        made(1, "chat", "a plain chat of 12 turns", chat),
        made(
            2,
            "hot",
            "32 turns at temperature 1.0",
            plain_chat(texts, turns(32), tokens=24, start=3),
            temperature=1.0,
        ),
        made(3, "thinking", "a thinking template, 12 turns", chat, template="thinking"),
        made(
            4,
            "tools",
            "tool calls, 12 turns",
            tool_calls(turns(12)),
            template="tools",
            instructions=None,
            tools=(LOOKUP,),
        ),
        made(
            5,
            "cut",
            "a reply cut short in every second turn, 12 turns",
            cut_short(plain_chat(texts, turns(12), start=6)),
        ),
        made(6, "again", "regenerate and edit in every third turn, 16 turns", thoughts),
        made(7, "branches", "five branches from one 1,500-token prefix", forks),
        made(
            8,
            "restarts",
            "saved and resumed in a new process after every turn, 6 turns",
            with_restarts(plain_chat(texts, min(turns(6), 6), start=12)),
        ),
        made(9, "window", "a sliding-window model past its window", window, model="sliding"),
        made(
            10,
            "hybrid",
            "a hybrid model with a divergence in every turn",
            plain_chat(texts, turns(12), start=21),
            model="hybrid",
            template="thinking",
        ),
        made(11, "document", "a 4,000-token document and ten questions", pages),
        made(12, "growth", "64 turns of equal length", growing(12 if quick else 64)),
    ]

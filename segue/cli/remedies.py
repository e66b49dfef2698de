"""Remedies for a person, who has options and slash commands, and no Python.

The library's errors and warnings advise whoever writes a program: ``clear() the conversation``,
``Leave kv_bits at None``. Before the command shows one, its advice is put into the words of the
command. Two errors have another remedy here than there. In all other advice, `PHRASES` are
replaced, and then names of settings by their options: a new setting needs nothing here.
"""

from __future__ import annotations

import re

from ..errors import ContextLengthError, SegueError, TemplateError
from .options import OPTIONS, option_name

# What helps in a chat, and what elsewhere.
CHAT_REMEDIES: dict[type[SegueError], str] = {
    ContextLengthError: "/undo or /clear makes room, and so does a shorter message; with /set "
    "on-overflow drop-oldest, the oldest turns make room by themselves.",
    TemplateError: "/undo takes back the last turn; /no-system removes the system message, if "
    "there is one.",
}
REMEDIES: dict[type[SegueError], str] = {
    ContextLengthError: "Shorten the text, or use a model with a larger context; in a chat, "
    "--on-overflow drop-oldest drops the oldest turns.",
    TemplateError: "Leave the system message out (--system '' removes that of a saved session), or "
    "use another model.",
}
PHRASES = [
    (r"Decode the text with errors='replace' where it comes from\.", "Type it again without that."),
    (r", or call prewarm\(\)", ""),
    (r"; retry\(\) answers", "; /retry answers"),
    (r"Pass them: respond\(.*\)\.", "/undo takes the turn back."),
    (r"Save the session instead: save\(path\)\.", "/save NAME saves the session instead."),
    (r"segue\.load_prompt_cache", "segue chat --cache"),
    (r"ChatSession\.open", "segue chat --session"),
    (r"Pass a file that ChatSession\.save wrote", "Name a file that /save wrote"),
    (r"; in Python, the error's `readable` has the rest", ""),
    (r", or set tokenizer\.chat_template yourself", ""),
    (r"Pass draft= to use one again", "--draft NAME uses one again"),
    (r"\bdraft at None", "--draft out"),
    (r" at None", " out"),
]
# Settings that are no field, but have an option.
NAMES = {"prompt_cache": "--cache", "on_overflow": "--on-overflow"}
NAMES |= {name: option_name(name) for name in OPTIONS}


def for_person(error: SegueError, *, in_chat: bool = False) -> str:
    """Return an error's text, with a remedy that a person has.

    Examples:
        >>> from segue import ConfigurationError
        >>> for_person(ConfigurationError("It can't be.", remedy="Leave kv_bits at None."))
        "It can't be. Leave --kv-bits out."

    Args:
        error: The error.
        in_chat: Whether the person can type slash commands.
    """
    remedies = CHAT_REMEDIES if in_chat else REMEDIES
    for kind, remedy in remedies.items():
        if isinstance(error, kind):
            return f"{error.what} {remedy}"
    return f"{error.what} {in_their_words(error.remedy)}"


def in_their_words(advice: str) -> str:
    """Return advice of the library in the words of the command."""
    for pattern, phrase in PHRASES:
        advice = re.sub(pattern, phrase, advice)
    return re.sub(r"(?<![-\w])[a-z]+(?:_[a-z]+)*(?![\w=])", _as_option, advice)


def _as_option(found: re.Match[str]) -> str:
    name = found[0]
    # Plain words, such as stop and seed, are most often no settings.
    return NAMES.get(name, name) if "_" in name else name

"""Commands that change the system message and the settings of replies."""

from __future__ import annotations

from dataclasses import replace

from ....errors import ConfigurationError, TemplateError
from ....session import ChatSession
from ...options import OVERFLOWS, option_name, parsed_setting, reply_settings, shown_value
from ...output.screen import show_remark, show_text
from .command import Chat, Commands

COMMANDS = Commands()

ON_OVERFLOW = "on-overflow"


@COMMANDS.add("/system [TEXT]", "set the system message, or show it")
def system(chat: Chat, text: str) -> None:
    """Set the system message, or show it."""
    if not text:
        show_text(chat.console, chat.session.instructions or "There is no system message.")
        return
    with chat.branches.current.changes.noting(chat.session, "/system"):
        set_instructions(chat.session, text)
    chat.note("The new system message takes effect with your next message.")


@COMMANDS.add("/no-system", "remove the system message")
def remove_system(chat: Chat, _: str) -> None:
    """Remove the system message."""
    if chat.session.instructions is None:
        chat.note("There is no system message.")
        return
    with chat.branches.current.changes.noting(chat.session, "/no-system"):
        set_instructions(chat.session, None)
    chat.note("The system message is removed, from your next message on.")


def set_instructions(session: ChatSession, text: str | None) -> None:
    """Set or remove a session's system message.

    Raises:
        ConfigurationError: if the model's template takes no system message; nothing changed.
        ContextLengthError: if it is longer than the model's context; nothing changed.
    """
    before = session.instructions
    session.instructions = text
    try:
        if text is not None:
            session.preview("Hello", history=())
    except BaseException as error:
        session.instructions = before
        if isinstance(error, TemplateError):
            raise ConfigurationError(
                f"The model takes no system message. {error.what}",
                remedy="Put the text into your first message instead.",
            ) from error
        raise


def is_setting(name: str) -> bool:
    """Return True if `/set` takes such a name, however it is written."""
    return _plain(name) in (*reply_settings(), ON_OVERFLOW)


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("_", "-")


@COMMANDS.add("/set [NAME VALUE]", "change a setting of replies, or show them")
def change_setting(chat: Chat, argument: str) -> None:
    """Change a setting of replies, or show them all."""
    session = chat.session
    if not argument:
        for name in reply_settings():
            value = getattr(session.generation, name.replace("-", "_"))
            show_remark(chat.console, f"{name} {shown_value(value)}")
        show_remark(chat.console, f"{ON_OVERFLOW} {session.on_overflow}")
        return
    name, _, value = argument.partition(" ")
    name, value = _plain(name), value.strip()
    if name == ON_OVERFLOW:
        if value not in OVERFLOWS:
            raise ConfigurationError(
                f"{ON_OVERFLOW} must be {' or '.join(OVERFLOWS)}, not {value!r}.",
                remedy=f"Such as: /set {ON_OVERFLOW} {OVERFLOWS[1]}",
            )
        session.on_overflow = value  # type: ignore[assignment]
    else:
        setting, parsed = parsed_setting(name, value)
        session.generation = replace(session.generation, **{setting: parsed})
    chat.note(f"{option_name(name)} is now {value}, from your next message on.")

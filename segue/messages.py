"""Who spoke and what was said: the parts of a history."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from .errors import MessageError


class Role(StrEnum):
    """Who speaks. The values are the keys that chat templates know."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; immutable.

    Args:
        role: Who speaks: a `Role`, or its value.
        content: What is said.
        name: The speaker's or tool's name, for templates that show it.
        tool_calls: The calls an assistant makes, in the form its chat template reads (commonly
            ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``). Copied.
        tool_call_id: Which call a tool result answers.
        reasoning: What an assistant thought before it said that, for templates that show it.

    Raises:
        MessageError: The role is unknown, or a field has the wrong type.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        try:
            role = Role(self.role)
        except ValueError:
            raise MessageError(
                f"{self.role!r} is not a role that a message can have.",
                remedy=f"Use one of: {', '.join(Role)}.",
            ) from None
        if not isinstance(self.content, str):
            raise MessageError(
                f"A message's content is text, not {type(self.content).__name__}.",
                remedy="Pass a string (an empty one for a message of tool calls alone).",
            )
        try:
            (self.content + (self.reasoning if isinstance(self.reasoning, str) else "")).encode()
        except UnicodeEncodeError as error:
            raise MessageError(
                f"A message's content has a character that is no text: {error.reason}.",
                remedy="Decode the text with errors='replace' where it comes from.",
            ) from None
        for field in ("name", "tool_call_id", "reasoning"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise MessageError(
                    f"A message's {field} is text, not {type(value).__name__}.",
                    remedy=f"Pass {field} as a string, or leave it out.",
                )
        calls = self.tool_calls
        if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Iterable):
            raise MessageError(
                f"A message's tool_calls are a sequence of mappings, not {type(calls).__name__}.",
                remedy="Pass a list with one mapping for each call.",
            )
        calls = tuple(calls)
        for call in calls:
            if not isinstance(call, Mapping):
                raise MessageError(
                    f"A tool call is a mapping, not {type(call).__name__}.",
                    remedy='Pass each call as {"type": "function", "function": {...}}.',
                )
        # The dataclass is frozen: normalized fields go in through the base class.
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "tool_calls", _copied(calls))

    @classmethod
    def system(cls, content: str) -> Message:
        """A message that sets the model's behaviour."""
        return cls(Role.SYSTEM, content)

    @classmethod
    def user(cls, content: str, *, name: str | None = None) -> Message:
        """A message from the person."""
        return cls(Role.USER, content, name=name)

    @classmethod
    def assistant(
        cls,
        content: str,
        *,
        tool_calls: Iterable[Mapping[str, Any]] = (),
        reasoning: str | None = None,
    ) -> Message:
        """A message from the model, with its reasoning and the tool calls it makes, if any."""
        # The constructor makes a tuple of them, once it knows that it can.
        return cls(Role.ASSISTANT, content, tool_calls=cast(Any, tool_calls), reasoning=reasoning)

    @classmethod
    def tool(
        cls, content: str, *, name: str | None = None, tool_call_id: str | None = None
    ) -> Message:
        """A tool's result."""
        return cls(Role.TOOL, content, name=name, tool_call_id=tool_call_id)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as plain values; ``Message(**entry)`` is this message again."""
        entry: dict[str, Any] = {"role": str(self.role), "content": self.content}
        for field in ("name", "tool_call_id", "reasoning"):
            if getattr(self, field) is not None:
                entry[field] = getattr(self, field)
        if self.tool_calls:
            entry["tool_calls"] = [copy.deepcopy(dict(call)) for call in self.tool_calls]
        return entry

    def to_template(self) -> dict[str, Any]:
        """The mapping that a chat template reads: role, content, and the fields that are set."""
        entry = self.to_dict()
        if "reasoning" in entry:
            # Templates read it by one of these names.
            entry["reasoning_content"] = entry["thinking"] = entry.pop("reasoning")
        return entry


def _copied(calls: tuple[Mapping[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    try:
        return tuple(copy.deepcopy(dict(call)) for call in calls)
    except (TypeError, RecursionError) as error:
        raise MessageError(
            f"A tool call holds something that can't be copied: {error}.",
            remedy="Use dicts, lists, strings and numbers.",
        ) from None


def as_messages(
    prompt: str | Message | Sequence[Message], role: Role = Role.USER
) -> tuple[Message, ...]:
    """What a caller may pass as a prompt, as messages.

    Args:
        prompt: Text (spoken by `role`), one message, or a non-empty sequence of messages.
        role: Who speaks a prompt that is mere text.

    Raises:
        MessageError: It is none of these.
    """
    if isinstance(prompt, Message):
        return (prompt,)
    if isinstance(prompt, str):
        return (Message(role, prompt),)
    # Callers without a type checker pass anything.
    given: object = prompt
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise MessageError(
            f"A prompt can't be made from {type(given).__name__}.",
            remedy="Pass a string, a Message, or a list of Messages.",
        )
    if not given:
        raise MessageError(
            "An empty sequence of messages gives the model nothing to answer.",
            remedy="Pass at least one Message.",
        )
    return check_messages(given)


def check_messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages as a tuple.

    Raises:
        MessageError: One of them is not a `Message`.
    """
    if not isinstance(messages, Iterable):
        raise MessageError(
            f"A history is a sequence of Messages, not {type(messages).__name__}.",
            remedy="Pass a list of Messages, or leave it out.",
        )
    checked = tuple(messages)
    for message in checked:
        if not isinstance(message, Message):
            raise MessageError(
                f"A conversation holds Messages, not {type(message).__name__}.",
                remedy="Build each with Message.user, .assistant, .tool or .system.",
            )
    return checked

"""Messages: text by speaker, and calls of tools with their results.

Whatever a caller hands over is checked and copied when a value is made, so that a bad message
fails where it was written, not in a template or a file, and nobody can change one later. All text
is free of lone surrogates, and arguments of calls are plain JSON: a conversation can always be
rendered, saved and sent.

A message has two forms as a mapping, for two readers. `Message.to_template` is for chat templates:
content as one string, arguments of calls as they are, reasoning under each name that templates use.
`Message.to_dict` is JSON of the OpenAI shape: parts as a list, arguments as text, and one name for
the reasoning; `Message.from_dict` reads it. (Files have a form of their own, see `segue.store`.)
"""

# No postponed annotations here: type hints must resolve when a class says it is `segue`'s.

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Self, TypeAlias

from .checks import check_text, refuse_unknown
from .errors import MessageError
from .tool_call import ToolCall

# The names of reasoning in the JSON of several APIs; ours is the first.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING_FIELDS)


class Role(StrEnum):
    """The speaker of a message. The values are the names that chat templates know."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


AnyRole: TypeAlias = Role | Literal["system", "user", "assistant", "tool"]
"""A role, or its value."""


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a message's content that is text.

    Examples:
        >>> Message.user([Text("Hello "), Text("there")]).text
        'Hello there'

    Raises:
        MessageError: if the text isn't a string, or contains a lone surrogate.
    """

    text: str
    """The text."""

    def __post_init__(self) -> None:
        check_text(self.text, "The text of a part")


Part: TypeAlias = Text
"""A part of a message's content."""

Content: TypeAlias = str | Sequence[Part | Mapping[str, Any]]
"""Anything that can become a message's content: text, or a list of parts, each of them a `Text` or
a mapping such as ``{"type": "text", "text": "..."}``."""


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One message of a conversation; immutable.

    Examples:
        >>> Message.user("What time is it?").role
        <Role.USER: 'user'>
        >>> call = ToolCall("clock", {"zone": "UTC"}, id="call-1")
        >>> asked = Message.assistant("", tool_calls=[call])
        >>> Message.tool("12:30", call=call).tool_call_id
        'call-1'

    Args:
        role: The speaker: a `Role`, or its value.
        content: Text, or a list of parts.
        name: The speaker's or tool's name, for templates that show it.
        tool_calls: The calls an assistant makes: each a `ToolCall`, or a mapping that
            `ToolCall.from_dict` reads.
        tool_call_id: The id of the call that a tool's result answers.
        reasoning: An assistant's thoughts before that content, for templates that show them.

    Raises:
        MessageError: if the role is unknown, a field has the wrong type, or a text contains a lone
            surrogate.
    """

    role: Role
    """The speaker."""
    content: str | tuple[Part, ...]
    """Text or parts, as they were given; `text` has the text of either."""
    name: str | None
    """The speaker's or tool's name."""
    tool_calls: tuple[ToolCall, ...]
    """The calls that an assistant makes."""
    tool_call_id: str | None
    """The id of the call that a tool's result answers."""
    reasoning: str | None
    """An assistant's thoughts before that content."""

    def __init__(
        self,
        role: AnyRole,
        content: Content,
        name: str | None = None,
        tool_calls: Iterable[ToolCall | Mapping[str, Any]] = (),
        tool_call_id: str | None = None,
        reasoning: str | None = None,
    ) -> None:
        checked = {
            "role": _checked_role(role),
            "content": _checked_content(content),
            "name": _checked_field("name", name),
            "tool_calls": _checked_calls(tool_calls),
            "tool_call_id": _checked_field("tool_call_id", tool_call_id),
            "reasoning": _checked_field("reasoning", reasoning),
        }
        # The dataclass is frozen: checked values go in through the base class.
        for field_name, value in checked.items():
            object.__setattr__(self, field_name, value)

    @classmethod
    def system(cls, content: Content) -> Self:
        """Make a message that sets the model's behaviour."""
        return cls(Role.SYSTEM, content)

    @classmethod
    def user(cls, content: Content, *, name: str | None = None) -> Self:
        """Make a message from the person."""
        return cls(Role.USER, content, name=name)

    @classmethod
    def assistant(
        cls,
        content: Content,
        *,
        tool_calls: Iterable[ToolCall | Mapping[str, Any]] = (),
        reasoning: str | None = None,
    ) -> Self:
        """Make a message from the model, with its reasoning and tool calls, if any."""
        return cls(Role.ASSISTANT, content, tool_calls=tool_calls, reasoning=reasoning)

    @classmethod
    def tool(
        cls,
        content: Content,
        *,
        name: str | None = None,
        tool_call_id: str | None = None,
        call: ToolCall | None = None,
    ) -> Self:
        """Make a message from a tool: its result.

        Args:
            content: The result.
            name: The tool's name; by default that of `call`.
            tool_call_id: The id of the call; by default that of `call`.
            call: The call that this answers.

        Raises:
            MessageError: if `call` isn't a ToolCall, or for the reasons of the constructor.
        """
        if call is not None:
            if not isinstance(call, ToolCall):
                raise MessageError(
                    f"The call of a tool's result must be a ToolCall, not {type(call).__name__}.",
                    remedy="Pass one of the calls in an assistant's message.tool_calls.",
                )
            name = call.name if name is None else name
            tool_call_id = call.id if tool_call_id is None else tool_call_id
        return cls(Role.TOOL, content, name=name, tool_call_id=tool_call_id)

    @property
    def text(self) -> str:
        """The text of all parts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """Read a message from JSON of the OpenAI shape.

        - ``role`` ``"developer"`` is the system's; the others are those of `Role`.
        - ``content`` is text or a list of parts of type ``"text"``; a part of another type is
          refused. ``null``, or none, is empty text in an assistant's message that has calls or
          reasoning, and refused in any other.
        - ``tool_calls`` are read by `ToolCall.from_dict`: arguments that are text become a mapping.
        - ``reasoning_content``, ``reasoning`` and ``thinking`` all are `reasoning`. If several are
          there, they must agree.
        - An unknown field is ignored if it is empty (``null``, ``false``, ``0``, ``""``, ``[]``,
          ``{}``), as ``refusal``, ``audio``, ``annotations`` and ``function_call`` mostly are; one
          that says something is refused, so that nothing is lost in silence.

        Examples:
            >>> Message.from_dict({"role": "assistant", "content": "Hi", "refusal": None}).text
            'Hi'

        Raises:
            MessageError: if the entry has another form.
        """
        if not isinstance(entry, Mapping):
            raise MessageError(
                f"A message must be read from a mapping, not {type(entry).__name__}.",
                remedy='Pass a mapping such as {"role": "user", "content": "..."}.',
            )
        refuse_unknown(entry, MESSAGE_FIELDS, "A message")
        # Any, because the constructor checks the types.
        role: Any = entry.get("role")
        content = entry.get("content")
        calls, reasoning = entry.get("tool_calls") or (), _read_reasoning(entry)
        if content is None:
            if role != Role.ASSISTANT or not (calls or reasoning):
                raise MessageError(
                    f"A message of role {role!r} must have content, not None.",
                    remedy="Pass a string. Only an assistant that calls a tool or thinks may say "
                    "nothing.",
                )
            content = ""
        return cls(
            Role.SYSTEM if role == "developer" else role,
            content,
            name=entry.get("name"),
            tool_calls=calls,
            tool_call_id=entry.get("tool_call_id"),
            reasoning=reasoning,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON of the OpenAI shape: the fields that are set.

        `from_dict` reads it as this message again. There is one exception: calls with arguments
        that are text (see `ToolCall`). If such text holds a JSON object, or nothing, it comes back
        as a mapping.
        """
        content: str | list[dict[str, str]]
        if isinstance(self.content, str):
            content = self.content
        else:
            content = [{"type": "text", "text": part.text} for part in self.content]
        return self._entry(content, [call.to_dict() for call in self.tool_calls])

    def to_template(self) -> dict[str, Any]:
        """Return the mapping that chat templates read: role, text, and the fields that are set."""
        entry = self._entry(self.text, [call.to_template() for call in self.tool_calls])
        if self.reasoning is not None:
            # Templates know it by this name or the other.
            entry["thinking"] = self.reasoning
        return entry

    def _entry(self, content: object, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """The fields that are set, in what both forms have in common."""
        # Every prompt makes one of each message of the history.
        entry: dict[str, Any] = {"role": self.role.value, "content": content}
        if self.name is not None:
            entry["name"] = self.name
        if calls:
            entry["tool_calls"] = calls
        if self.tool_call_id is not None:
            entry["tool_call_id"] = self.tool_call_id
        if self.reasoning is not None:
            entry["reasoning_content"] = self.reasoning
        return entry


def _checked_field(name: str, value: str | None) -> str | None:
    if value is not None:
        check_text(
            value, f"A message's {name}", remedy=f"Pass {name} as a string, or leave it out."
        )
    return value


def _checked_role(role: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise MessageError(
            f"A message's role must be one of {', '.join(Role)}, not {role!r}.",
            remedy="Use one of these.",
        ) from None


def _checked_content(content: object) -> str | tuple[Part, ...]:
    if isinstance(content, list | tuple):
        return tuple(map(_checked_part, content))
    if not isinstance(content, str):
        raise MessageError(
            f"A message's content must be text or a list of parts, not {type(content).__name__}.",
            remedy="Pass a string (an empty one for a message of tool calls alone).",
        )
    check_text(content, "A message's content")
    return content


def _checked_part(part: object) -> Part:
    if isinstance(part, Text):
        return part
    if not isinstance(part, Mapping):
        raise MessageError(
            f"A part of content must be a Text or a mapping, not {type(part).__name__}.",
            remedy='Pass a string alone, or parts: Text("...") or {"type": "text", "text": "..."}.',
        )
    kind = part.get("type")
    if kind != "text":
        raise MessageError(
            f"A part of content must be of type 'text', not {kind!r}.",
            remedy="Leave parts of other types out.",
        )
    refuse_unknown(part, ("type", "text"), "A text part")
    text: Any = part.get("text")  # checked by the constructor
    return Text(text)


def _checked_calls(calls: object) -> tuple[ToolCall, ...]:
    if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Iterable):
        raise MessageError(
            f"A message's tool_calls must be a list of calls, not {type(calls).__name__}.",
            remedy="Pass a list with one ToolCall or one mapping for each call.",
        )
    return tuple(call if isinstance(call, ToolCall) else ToolCall.from_dict(call) for call in calls)


def _read_reasoning(entry: Mapping[str, Any]) -> Any:
    given = [entry[name] for name in REASONING_FIELDS if entry.get(name) is not None]
    thought = [value for value in given if value] or given
    if any(value != thought[0] for value in thought):
        raise MessageError(
            f"A message must have one reasoning, but {', '.join(REASONING_FIELDS)} differ.",
            remedy=f"Keep {REASONING_FIELDS[0]} alone.",
        )
    return thought[0] if thought else None


def as_messages(
    prompt: str | Message | Sequence[Message], role: AnyRole = Role.USER
) -> tuple[Message, ...]:
    """Make messages of what a caller may pass as a prompt.

    Args:
        prompt: Text (spoken by `role`), one message, or a non-empty sequence of messages.
        role: The speaker of a prompt that is text alone.

    Raises:
        MessageError: if the prompt is none of these.
    """
    if isinstance(prompt, Message):
        return (prompt,)
    if isinstance(prompt, str):
        return (Message(role, prompt),)
    # Callers without a type checker pass anything.
    given: object = prompt
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise MessageError(
            f"A prompt must be text, a Message or a list of Messages, not {type(given).__name__}.",
            remedy="Build each message with Message.user, .assistant, .tool or .system.",
        )
    if not given:
        raise MessageError(
            "A prompt must have at least one message, not none.",
            remedy="Pass text or a Message.",
        )
    return check_messages(given)


def check_messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return the messages as a tuple.

    Raises:
        MessageError: if they aren't a sequence, or one of them isn't a `Message`.
    """
    if not isinstance(messages, Iterable):
        raise MessageError(
            f"A history must be a sequence of Messages, not {type(messages).__name__}.",
            remedy="Pass a list of Messages, or leave it out.",
        )
    checked = tuple(messages)
    for message in checked:
        if not isinstance(message, Message):
            raise MessageError(
                f"A history must be of Messages alone, not {type(message).__name__}.",
                remedy="Build each with Message.user, .assistant, .tool or .system.",
            )
    return checked

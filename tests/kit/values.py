"""Values of conversations for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from segue import Conversation, Message, Role, Text, ToolCall

# Any text but lone surrogates.
WORDS = st.text(max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(WORDS, PLAIN, max_size=4)
# Broken JSON, as models write it at times; and JSON.
TEXTS = WORDS | st.sampled_from(['{"a": 1}', '{"a":[1,"é"]}', '{"a": 1', "[1]", " ", "{}"])
CALLS = st.builds(ToolCall, WORDS, OBJECTS | TEXTS, st.none() | WORDS)


def _is_the_same_in_json(call: ToolCall) -> bool:
    return ToolCall.from_dict(call.to_dict()) == call


CONTENT = WORDS | st.lists(st.builds(Text, WORDS), max_size=3)


def _messages(calls: st.SearchStrategy[ToolCall]) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        st.sampled_from(Role),
        CONTENT,
        name=st.none() | WORDS,
        tool_calls=st.lists(calls, max_size=2),
        tool_call_id=st.none() | WORDS,
        reasoning=st.none() | WORDS,
    )


# JSON of the OpenAI shape can't tell text that holds an object from the object.
MESSAGES = _messages(CALLS.filter(_is_the_same_in_json))
CONVERSATIONS = st.builds(
    Conversation, st.none() | WORDS, st.lists(_messages(CALLS), max_size=4), OBJECTS
)

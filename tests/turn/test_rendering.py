"""What a chat template renders of a conversation: in the form it takes, and nothing left out."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

import pytest

from kit.probe import held, hugging_face
from kit.templates import CHATML, make_tokenizer, our_templates, published_templates
from segue import (
    ChatSession,
    Conversation,
    LostWordsError,
    Message,
    TemplateError,
    TemplateWarning,
    Text,
    ToolCall,
)
from segue.ledger import MARK
from segue.testing import FakeEngine, ToyTokenizer
from segue.turn.prompts.left_out import LeftOut
from segue.turn.prompts.rendering import Renderer

# Content is a list of parts: of a string, these templates render nothing, or break.
PARTS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}{{- part.text }}{%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
FIRST_PART = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content[0].text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
USERS_PARTS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'user' %}
        {%- for part in message.content %}{{- part['text'] }}{%- endfor %}
    {%- else %}{{- message.content | trim }}{%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
SYSTEMS_PARTS = USERS_PARTS.replace("== 'user'", "== 'system'")
WANT_PARTS = {
    "all": PARTS,
    "all, or it breaks": FIRST_PART,
    "users": USERS_PARTS,
    "system": SYSTEMS_PARTS,
}
# Leave something out.
NO_TOOL_RESULTS = CHATML.replace(
    "{%- for message in messages %}", "{%- for message in messages if message.role != 'tool' %}"
)
FIRST_SYSTEM = CHATML.replace(
    "{%- for message in messages %}",
    "{%- for message in messages %}{%- if loop.first or message.role != 'system' %}",
).replace("{%- endfor %}", "{%- endif %}{%- endfor %}")
LAST_SYSTEM = """\
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}
    {%- set ns.system = message.content %}
{%- endfor %}
{{- ns.system }}
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
NO_SYSTEM = CHATML.replace(
    "{%- for message in messages %}", "{%- for message in messages if message.role != 'system' %}"
)
CUTS_USERS = CHATML.replace("message.content", "message.content.split('</think>')[-1]")
ESCAPES = CHATML.replace("message.content", "message.content | tojson")
SHOUTS = CHATML.replace("message.content", "message.content | upper")

CALL = ToolCall("clock", {"zone": "UTC"}, id="call00001")
USER, ANSWER = Message.user("Good morning"), Message.assistant("Good morning to you.")
SHORT = ["a", "Hi", "0", "?", "é", "😀", "user", "system"]
CONTENTS = [
    *SHORT,
    "  padded \n\n",
    "a line\nand\t\"another\" one, with \\ and 'quotes'",
    "<b>bold</b> & <i>more</i>",
    '{"json": ["é", 1, null]}',
    "world 世界, zero\u200bwidth and no\u00a0break",
    "<|im_end|> <|eot_id|> [INST] typed [/INST]",
    "solve it /no_think",
    "{{ braces }} {% and %} %Y",
    "x" * 300,
]


@lru_cache
def tokenizer_of(source: str):
    if source in published_templates().values():
        return make_tokenizer(source, "byte-level")
    # One that the kit can look into, with the special tokens of all of these.
    tokenizer = make_tokenizer(CHATML, "byte-level")
    hugging_face(tokenizer.wrapped).chat_template = source
    return tokenizer


def session_over(source: str, **kwargs) -> ChatSession:
    return ChatSession(FakeEngine(["fine"] * 9, tokenizer=tokenizer_of(source)), **kwargs)


def check(source: str, conversation: Conversation, asked: int = 1) -> tuple[str, ...]:
    renderer = Renderer(tokenizer_of(source))
    return LeftOut(renderer).check(conversation, renderer.render(conversation), asked=asked)


def text_of(source: str, conversation: Conversation) -> str:
    return Renderer(tokenizer_of(source)).render(conversation).replace(MARK, "")


# --- the form of contents -----------------------------------------------------------------------


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("source", WANT_PARTS.values(), ids=WANT_PARTS)
def test_content_is_given_as_parts_where_the_template_takes_parts_alone(source, content):
    said = [Message.user(content), Message.assistant(content), Message.user(content)]
    text = text_of(source, Conversation(content, said))
    shown = re.findall(r"<\|im_start\|>\w+\n(.+?)<\|im_end\|>\n", text, re.DOTALL)
    assert [one.strip() for one in shown] == [content.strip()] * 4
    assert check(source, Conversation(content, said)) == ()


@pytest.mark.parametrize("source", WANT_PARTS.values(), ids=WANT_PARTS)
def test_a_conversation_with_parts_reads_nothing_twice(source):
    session = session_over(source, instructions="Be brief.")
    session.respond("Hello")
    for question in ("Hi", "And now?", "a"):
        before = held(session)
        with session.stream(question) as reply:
            list(reply)
        assert reply.cached_tokens >= len(before) - 1  # but for the end of the reply
        assert f"user\n{question}<|im_end|>" in tokenizer_of(source).decode(held(session))


def test_several_parts_are_one_where_the_template_takes_parts():
    # Some render the first part alone.
    counting = PARTS.replace("message.role + '\\n'", "message.content | length | string + '\\n'")
    said = Conversation(None, [Message.user([Text("one "), Text("two")])])
    assert "<|im_start|>1\none two<|im_end|>" in text_of(counting, said)


def test_parts_are_joined_where_the_template_takes_text():
    said = Conversation(None, [Message.user([Text("one "), Text("two")])])
    assert "user\none two<|im_end|>" in text_of(CHATML, said)


@pytest.mark.parametrize("name", our_templates())
def test_a_list_written_out_is_not_taken_for_a_template_that_takes_parts(name):
    text = text_of(our_templates()[name], Conversation(None, [Message.user("Hi")]))
    assert "Hi" in text
    assert "'type'" not in text


def test_the_form_is_found_once():
    class Counting(ToyTokenizer):
        renders = 0

        def render(self, messages, **kwargs):
            Counting.renders += 1
            return super().render(messages, **kwargs)

    engine = FakeEngine(["fine"] * 9, tokenizer=Counting())
    session = ChatSession(engine, instructions="Be brief.")
    for question in ("Hello", "Hi", "And?"):
        session.respond(question)
    before = Counting.renders
    session.respond("a")
    session.respond("And what of this question, which is long enough?")
    assert Counting.renders == before + 2


# --- what is left out ---------------------------------------------------------------------------

RESULT = [USER, Message.assistant("", tool_calls=[CALL]), Message.tool("12:30", call=CALL)]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_result_that_is_left_out_is_refused_and_nothing_changes(content):
    session = session_over(NO_TOOL_RESULTS)
    session.respond("Hello")
    before = (session.history, session.cached_tokens, held(session))
    for verb in (session.stream, session.preview, session.respond):
        with pytest.raises(LostWordsError, match=r"message 4 \(tool\)") as caught:
            verb([*RESULT[:2], Message.tool(content, call=CALL)])
        assert caught.value.index == 4
        assert (session.history, session.cached_tokens, held(session)) == before
    # The way on.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert session.respond(f"The tool says {content}.") == "fine"


@pytest.mark.parametrize("content", SHORT)
@pytest.mark.parametrize("source", [NO_SYSTEM], ids=["no system"])
def test_instructions_that_are_left_out_are_refused(source, content):
    session = session_over(source, instructions=content)
    for act in (lambda: session.stream("Hello, are you there?"), session.prewarm):
        with pytest.raises(LostWordsError, match="the instructions") as caught:
            act()
        assert caught.value.index is None
    assert session.cached_tokens == 0
    session.instructions = None
    assert session.respond("Hello") == "fine"


def test_blank_messages_have_no_words_to_lose():
    for content in ("", " \n"):
        said = [USER, Message.assistant(content), Message.user(content)]
        assert check(NO_SYSTEM, Conversation(content, said)) == ()


def test_a_second_system_message_that_is_left_out_is_refused():
    session = session_over(FIRST_SYSTEM, instructions="Be brief.")
    session.respond("Hello")
    with pytest.raises(LostWordsError, match=r"message 2 \(system\)") as caught:
        session.stream([Message.system("Be long."), Message.user("And now?")])
    assert "instructions" in caught.value.remedy
    assert session.respond("And now?") == "fine"


def test_a_second_system_message_that_takes_the_instructions_place_is_refused():
    session = session_over(LAST_SYSTEM, instructions="Be brief.")
    session.respond("Hello")
    with pytest.raises(LostWordsError, match="the instructions"):
        session.stream([Message.system("Be long."), Message.user("And now?")])
    session.instructions = None
    assert session.respond([Message.system("Be long."), Message.user("And now?")]) == "fine"


def test_what_was_said_before_is_warned_of_once():
    session = session_over(FIRST_SYSTEM, history=[USER, Message.system("Be long."), ANSWER])
    with pytest.warns(TemplateWarning, match="message 1 .system.*'Be long.'") as caught:
        session.respond("And now?")
    assert len(caught) == 1
    assert caught[0].filename.endswith("session.py")
    session.respond("Once more?")
    session.fork().respond("And here?")


def test_a_warning_names_the_line_that_asked():
    session = session_over(FIRST_SYSTEM, history=[USER, Message.system("Be long."), ANSWER])
    with pytest.warns(TemplateWarning) as caught:
        session.stream("And now?")
    assert caught[0].filename == __file__


def test_where_warnings_are_errors_the_next_attempt_goes_through():
    session = session_over(FIRST_SYSTEM, history=[USER, Message.system("Be long."), ANSWER])
    with pytest.raises(TemplateWarning):
        session.respond("And now?")
    assert (len(session.history), session.cached_tokens) == (3, 0)
    assert session.respond("And now?") == "fine"


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        ("Cut here </think> and keep this", "Cut here"),
        ("a</think>b", "a</think>b"),
        ("</think> all that is here stays", "think> all"),
    ],
)
def test_a_part_that_is_left_out_is_warned_of(content, rest):
    said = Conversation(None, [Message.user(content)], allow_control_tokens=True)
    (told,) = check(CUTS_USERS, said)
    assert "a part of message 0 (user)" in told
    assert rest in told


@pytest.mark.parametrize("content", ["Cut here </think> and keep this", "a</think>b"])
def test_nothing_is_cut_where_contents_are_text(content):
    """A template looks for a tag, and what a person types is none."""
    said = Conversation(None, [Message.user(content)])
    assert check(CUTS_USERS, said) == ()
    assert content in text_of(CUTS_USERS, said)


def test_the_reasoning_in_an_answer_may_be_left_out():
    said = [USER, Message.assistant("I think</think>Hello", reasoning="hm"), USER]
    assert check(CUTS_USERS, Conversation(None, said)) == ()


@pytest.mark.parametrize("source", [ESCAPES, SHOUTS], ids=["escapes", "shouts"])
@pytest.mark.parametrize("content", ["Hi", 'a "b"\nc é', "<b>", "\\", "straße", "line\n" * 9])
def test_escaped_words_are_there(source, content):
    said = [Message.user(content), Message.assistant(content), Message.user(content)]
    assert check(source, Conversation(content, said)) == ()


def test_the_same_words_twice_are_missed_once():
    twice = Message.user("The very same words, said a second time.")
    odd = CHATML.replace("in messages %}", "in [messages[0]] + messages[2:] %}")
    (told,) = check(odd, Conversation(None, [twice, twice, USER]))
    assert "(user)" in told


def test_words_that_another_speaker_repeats_are_missed_all_the_same():
    users = CHATML.replace("in messages %}", "in messages if message.role != 'assistant' %}")
    words = "The very same words, said by another."
    said = [USER, Message.assistant(words), Message.user(words)]
    (told,) = check(users, Conversation(None, said))
    assert "message 1 (assistant)" in told


def test_forks_find_out_on_their_own():
    session = session_over(PARTS, instructions="Be brief.")
    session.respond("Hi")
    twin = session.fork()
    twin.template_kwargs = {"a": 1}
    for _ in range(2):
        assert twin.respond("And now?") == "fine"
        assert session.respond("And now?") == "fine"
    assert "And now?" in tokenizer_of(PARTS).decode(held(twin))


def test_what_is_only_tried_fails_no_turn():
    class Touchy(ToyTokenizer):
        """Someone else's: breaks on what it was never given, in ways of its own."""

        def render(self, messages, **kwargs):
            for message in messages:
                if not isinstance(message["content"], str) or "zqx" in message["content"]:
                    raise ZeroDivisionError
            said = [message for message in messages if message["role"] != "tool"]
            return super().render(said, **kwargs)

    engine = FakeEngine(["fine"] * 9, tokenizer=Touchy())
    session = ChatSession(engine, instructions="Be brief.")
    assert session.respond("Hi") == "fine"
    with pytest.warns(TemplateWarning, match="message 4"):
        session.respond([*RESULT[:2], Message.tool("It is half past twelve.", call=CALL)])
    session.instructions = "Be kind."
    session.respond("Hi")
    assert str(session.reuse)


def test_a_call_that_is_left_out_is_warned_of():
    (told,) = check(CHATML, Conversation(None, RESULT), asked=3)
    assert told.startswith("The chat template leaves out a call of clock in message 1 (assistant)")


def test_thoughts_before_a_call_of_an_earlier_turn_may_be_left_out():
    silent = CHATML.replace(
        "message.content +",
        "(message.tool_calls | tojson if message.tool_calls else message.content) +",
    )
    called = Message.assistant("I look it up.", tool_calls=[CALL])
    (told,) = check(silent, Conversation(None, [USER, called, RESULT[2]]), asked=3)
    assert "message 1 (assistant)" in told
    assert check(silent, Conversation(None, [USER, called, RESULT[2], ANSWER, USER])) == ()


def test_tools_that_the_template_ignores_are_warned_of_once():
    tool = {"type": "function", "function": {"name": "clock", "description": "The time."}}
    session = session_over(CHATML, template_kwargs={"tools": [tool]})
    with pytest.warns(TemplateWarning, match="ignores tools") as caught:
        session.respond("Hello")
    assert len(caught) == 1
    session.respond("And now?")


def test_documents_that_the_template_ignores_are_warned_of():
    documents = [{"title": "The clock", "text": "It is half past twelve."}]
    said = Conversation(None, [USER], {"documents": documents})
    (told,) = check(CHATML, said)
    assert "ignores documents" in told
    assert check("{{- documents | tojson }}" + CHATML, said) == ()


def test_a_second_call_that_is_left_out_is_warned_of():
    one = CHATML.replace(
        "message.content +",
        "(message.tool_calls[0].function.name if message.tool_calls else message.content) +",
    )
    calls = [CALL, ToolCall("weather", {"city": "Paris"}, id="call00002")]
    said = [USER, Message.assistant("", tool_calls=calls), RESULT[2]]
    (told,) = check(one, Conversation(None, said), asked=3)
    assert "a call of weather in message 1" in told


def test_tools_that_the_template_knows_are_no_cause_for_alarm():
    tool = {"type": "function", "function": {"name": "clock", "description": "The time."}}
    said = Conversation(None, RESULT, {"tools": [tool]})
    assert check(our_templates()["tools"], said, asked=3) == ()


def test_a_template_that_takes_roles_alone_still_says_what_it_refuses():
    with pytest.raises(TemplateError, match="no system here"):
        text_of(our_templates()["strict"], Conversation("Be brief.", [USER]))


# --- published templates ------------------------------------------------------------------------

# What they leave out: results of tools, a later system message, or the instructions when there is
# one. All others take or refuse them.
NO_RESULTS = {"microsoft-Phi-3.5-mini-instruct"}
NO_ORPHANS = {"gemma4_e2b", "llama-2-chat", "vicuna"}
ONE_SYSTEM = {
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "the instructions",
    "openai-gpt-oss-120b": "message 2",
    "NVIDIA-Nemotron-Nano-v2": "message 2",
}
PUBLISHED = pytest.mark.parametrize(
    ("name", "source"),
    [pytest.param(*entry, id=entry[0]) for entry in published_templates().items()]
    or [pytest.param("", "", marks=pytest.mark.skip("SEGUE_DATA is not set."))],
)


def kwargs_for(name: str) -> dict:
    tool = {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
        },
    }
    return {"tools": [tool]} if "tool_use" in name else {}


@PUBLISHED
@pytest.mark.parametrize("content", CONTENTS)
def test_published_templates_leave_nothing_out_of_plain_turns(name, source, content):
    kwargs = kwargs_for(name)
    thought = Message.assistant(content, reasoning="thoughts")
    said = [Message.user(content), thought, Message.user(content)]
    assert check(source, Conversation(None, said[:1], kwargs)) == ()
    assert check(source, Conversation(None, said, kwargs)) == ()
    try:
        text_of(source, Conversation(content, said, kwargs))
    except TemplateError:
        return
    assert check(source, Conversation(content, said, kwargs)) == ()


@PUBLISHED
def test_published_templates_and_a_second_system_message(name, source):
    said = [USER, ANSWER, Message.system("Be long."), Message.user("And now?")]
    conversation = Conversation("Be brief.", said, kwargs_for(name))
    if name in ONE_SYSTEM:
        with pytest.raises(LostWordsError, match=ONE_SYSTEM[name]):
            check(source, conversation, asked=2)
        return
    try:
        text = text_of(source, conversation)
    except TemplateError:
        return
    assert check(source, conversation, asked=2) == ()
    assert "Be brief." in text
    assert "Be long." in text


@PUBLISHED
@pytest.mark.parametrize("content", ["12:30", "It is half past twelve in the whole of this zone."])
def test_published_templates_and_results_of_tools(name, source, content):
    answered = [*RESULT[:2], Message.tool(content, call=CALL)]
    # Gemma 4 renders results by the call before them, and two take them for answers.
    orphan = [USER, ANSWER, USER, Message.tool(content, call=CALL)]
    for said, lost in ((answered, NO_RESULTS), (orphan, {*NO_RESULTS, *NO_ORPHANS})):
        conversation = Conversation(None, said, kwargs_for(name))
        if name in lost:
            with pytest.raises(LostWordsError, match="tool"):
                check(source, conversation)
            continue
        try:
            text = text_of(source, conversation)
        except TemplateError:
            continue
        for sentence in check(source, conversation):
            assert "a call of clock" in sentence
        assert content in text

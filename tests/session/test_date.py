"""Templates that write the date: a conversation keeps its own, on any day and in any process."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from kit.dated import LONG_AGO, Dated
from kit.paths import OLD_SESSIONS
from kit.probe import held
from kit.templates import make_tokenizer, published_templates
from segue import (
    ChatSession,
    ConfigurationError,
    Conversation,
    Message,
    SessionFile,
    load_prompt_cache,
)
from segue.engine import WritesDate
from segue.testing import FakeEngine, ToyTokenizer
from segue.turn.prompts.rendering import Renderer

# Writes the date first, as gpt-oss and Mistral do, so that another date changes everything.
DATED = """\
{{- '<|im_start|>system\\nToday is ' + strftime_now('%A, %d. %B %Y, %H:%M:%S.%f, 100%%') }}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
IF_DEFINED = (
    "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set day = '26 Jul 2024' %}{%- endif %}{{- day }}\n" + DATED
)
IN_A_MACRO = (
    "{%- macro today() %}{{- strftime_now('%-d/%m/%y') }}{%- endmacro %}{{- today() }}" + DATED
)
TOKENIZERS = {
    "someone else's": Dated(),
    "dated": make_tokenizer(DATED, "byte-level"),
    "if defined": make_tokenizer(IF_DEFINED, "byte-level"),
    "in a macro": make_tokenizer(IN_A_MACRO, "byte-level"),
}
DATING = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def engine_of(tokenizer) -> FakeEngine:
    return FakeEngine(["fine", "well", "good"] * 3, tokenizer=tokenizer)


def fed(session: ChatSession, question: str) -> tuple[int, int]:
    """What a turn kept of the cache, and what the cache held before."""
    before = len(held(session))
    with session.stream(question) as reply:
        list(reply)
    return reply.cached_tokens, before


@DATING
def test_a_session_keeps_its_date_from_turn_to_turn(tokenizer):
    session = ChatSession(engine_of(tokenizer))
    session.respond("Hello")
    for _ in range(3):  # microseconds pass
        cached, before = fed(session, "And now?")
        assert cached >= before - 1


@DATING
def test_a_session_opened_on_another_day_reads_its_own_message_alone(tokenizer, tmp_path):
    path = tmp_path / "talk.segue"
    with ChatSession(engine_of(tokenizer), date=LONG_AGO) as session:
        session.respond("Hello")
        session.save(path)
    again = ChatSession.open(path, engine_of(tokenizer))
    assert again.date == LONG_AGO.astimezone()
    cached, before = fed(again, "And now?")
    assert cached >= before - 1
    assert "2024" in tokenizer.decode(held(again))


def test_another_process_goes_on_with_the_date(tmp_path):
    path = tmp_path / "talk.segue"
    with ChatSession(engine_of(Dated())) as session:
        session.respond("Hello")
        session.save(path)
    program = (
        "import segue; from test_date import *;"
        f"session = ChatSession.open({str(path)!r}, engine_of(Dated()));"
        "cached, before = fed(session, 'And now?'); assert cached >= before - 1, (cached, before)"
    )
    tests = Path(__file__).parents[1]
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(tests), str(tests / 'session')]};{program}",
        ],
        check=True,
        env={"TZ": "Asia/Tokyo", "PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )


@DATING
def test_the_date_is_what_the_template_says_of_the_present(tokenizer):
    session = ChatSession(engine_of(tokenizer))
    before = datetime.now().astimezone()
    assert timedelta(0) <= before - session.date < timedelta(minutes=5)
    conversation = session.conversation.extended(Message.user("Hi"))
    session.date = LONG_AGO
    dated = session.conversation.extended(Message.user("Hi"))
    one, other = (Renderer(tokenizer).render(each) for each in (conversation, dated))
    assert "2024" in other
    assert "2024" not in one


def test_directives_are_written_as_strftime_writes_them():
    text = Renderer(TOKENIZERS["dated"]).render(
        Conversation(None, [Message.user("Hi")], date=LONG_AGO)
    )
    assert f"Today is {LONG_AGO.strftime('%A, %d. %B %Y, %H:%M:%S.%f, 100%%')}<" in text


def test_a_zone_is_not_written_as_templates_know_none():
    zoned = make_tokenizer(DATED.replace("%f", "%Z|%z|"), "byte-level")
    date = LONG_AGO.replace(tzinfo=timezone(timedelta(hours=5, minutes=45)))
    text = Renderer(zoned).render(Conversation(None, [Message.user("Hi")], date=date))
    assert "23:59:58.||," in text


@DATING
def test_forks_share_the_date_and_a_change_is_their_own(tokenizer):
    session = ChatSession(engine_of(tokenizer))
    session.respond("Hello")
    twin = session.fork()
    assert twin.date == session.date
    cached, before = fed(twin, "And now?")
    assert cached >= before - 1
    twin.date = LONG_AGO
    assert session.date != twin.date
    cached, before = fed(twin, "And now?")
    assert cached < before // 2


def test_clear_begins_a_conversation_of_today_unless_a_date_was_given(tmp_path):
    session = ChatSession(engine_of(Dated()))
    began = session.date
    session.respond("Hello")
    session.clear()
    assert session.date > began
    session.date = LONG_AGO
    session.clear()
    assert session.date == LONG_AGO.astimezone()
    path = tmp_path / "talk.segue"
    session.save(path)
    session.close()
    with ChatSession.open(path, engine_of(Dated())) as again:
        again.clear()
        assert again.date == LONG_AGO.astimezone()
    with ChatSession.open(path, engine_of(Dated()), date=None) as again:
        assert again.date > began
        again.clear()
        assert again.date > began
    session.date = None
    assert session.date > began


def test_the_date_can_be_given_when_a_session_is_opened(tmp_path):
    path = tmp_path / "talk.segue"
    with ChatSession(engine_of(Dated())) as session:
        session.respond("Hello")
        session.save(path)
    again = ChatSession.open(path, engine_of(Dated()), date=LONG_AGO)
    assert again.date == LONG_AGO.astimezone()
    again.respond("And now?")
    assert Dated().decode(held(again)).startswith("2024-02-29")


@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_a_prompt_cache_keeps_its_date(tmp_path, instructions):
    engine = engine_of(Dated())
    session = ChatSession(engine, instructions="Be brief.", date=LONG_AGO)
    session.prewarm()
    session.save_cache(tmp_path / "brief")
    cache = load_prompt_cache(tmp_path / "brief", engine)
    # The same instructions, said once more, are found in the cache as well.
    again = ChatSession(engine, prompt_cache=cache, instructions=instructions)
    assert again.date == LONG_AGO.astimezone()
    cached, before = fed(again, "Hello")
    assert cached == before > 0
    today = ChatSession(engine, prompt_cache=cache, date=datetime.now())
    assert fed(today, "Hello")[0] < before // 2


def test_files_of_0_1_take_the_time_of_their_save():
    file = SessionFile.read(OLD_SESSIONS / "v1-plain.segue")
    assert file.conversation.date is None
    assert file.date == file.origin.saved


@pytest.mark.parametrize("date", ["2024-02-29", 1.5, LONG_AGO.date()])
def test_what_is_no_date_is_refused(date):
    with pytest.raises(ConfigurationError, match="date must be a datetime"):
        ChatSession(FakeEngine(), date=date)
    session = ChatSession(FakeEngine())
    before = session.date
    with pytest.raises(ConfigurationError, match="date must be a datetime"):
        session.date = date
    assert session.date == before


def test_a_date_without_a_zone_is_local_time():
    assert ChatSession(FakeEngine(), date=LONG_AGO).date == LONG_AGO.astimezone()
    there = LONG_AGO.replace(tzinfo=UTC)
    assert ChatSession(FakeEngine(), date=there).date == there


def test_conversations_are_compared_without_their_dates():
    said = [Message.user("Hi")]
    assert Conversation(None, said, date=LONG_AGO) == Conversation(None, said)


def test_a_template_without_a_date_gets_no_clock():
    class Plain(ToyTokenizer):
        def render(self, messages, *, add_generation_prompt, template_kwargs):
            assert template_kwargs == {"a": 1}
            return super().render(
                messages,
                add_generation_prompt=add_generation_prompt,
                template_kwargs=template_kwargs,
            )

    assert not isinstance(Plain(), WritesDate)
    session = ChatSession(engine_of(Plain()), template_kwargs={"a": 1}, date=LONG_AGO)
    assert session.respond("Hi") == "fine"


PUBLISHED = {
    name: source for name, source in published_templates().items() if "strftime_now" in source
}


@pytest.mark.parametrize(
    "name", PUBLISHED or [pytest.param("", marks=pytest.mark.skip("SEGUE_DATA is not set."))]
)
def test_published_templates_write_the_conversation_s_date(name):
    tokenizer = make_tokenizer(PUBLISHED[name], "byte-level")
    assert tokenizer.writes_date
    said = [Message.user("Hi")]
    text = Renderer(tokenizer).render(Conversation(None, said, date=LONG_AGO))
    assert "2024-02-29" in text or "February 29, 2024" in text
    # By the present clock, it is the template's own render to the letter.
    present = tokenizer.render(
        [said[0].to_template()], add_generation_prompt=True, template_kwargs={}
    )
    days = {datetime.now(), datetime.now() - timedelta(minutes=1)}  # midnight may pass
    renders = [Renderer(tokenizer).render(Conversation(None, said, date=day)) for day in days]
    assert present in renders

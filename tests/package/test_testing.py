"""What `segue.testing` gives to the tests of programs: fakes that fail where a program is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

import segue
import segue.testing
from kit.models import toy_engine
from segue import ChatSession, ConfigurationError, GenerationError, MlxEngine
from segue.testing import BareEngine, CachingModel, FakeEngine, ScriptedModel, ToyTokenizer

ENGINES = [FakeEngine, BareEngine]


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize(
    ("script", "had"),
    [([], "no replies"), (["one"], "1 reply,"), (["one", "two"], "2 replies")],
)
def test_a_script_that_is_used_up(make, script, had):
    session = ChatSession(make(script))
    for reply in script:
        assert session.respond("Hi") == reply
    for _ in range(2):
        with pytest.raises(GenerationError, match=f"script had {had}"):
            session.respond("Hi")
    # What needs no reply still works.
    session.prewarm()
    session.respond("Hi", max_tokens=0)


@pytest.mark.parametrize("make", ENGINES)
def test_a_reply_may_still_be_empty(make):
    session = ChatSession(make(["", [], "x"]))
    assert [session.respond("Hi") for _ in range(3)] == ["", "", "x"]


@pytest.mark.parametrize("make", ENGINES)
def test_a_scripted_model(make):
    model = ScriptedModel(["Hello!"])
    engine = make(model)
    assert engine.model is model
    assert engine.tokenizer is model.tokenizer
    assert ChatSession(engine).respond("Hi") == "Hello!"
    assert model.calls


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize(
    "more",
    [{"tokenizer": ToyTokenizer()}, {"fail_at": [1]}, {"failure": OSError()}, {"answer": str}],
)
def test_a_scripted_model_is_what_it_is(make, more):
    with pytest.raises(ConfigurationError, match="must bring its own"):
        make(ScriptedModel(["Hello!"]), **more)


@pytest.mark.parametrize("make", [*ENGINES, ScriptedModel])
def test_a_script_is_a_list(make):
    with pytest.raises(ConfigurationError, match="must be a list of replies, not 'Hello!'"):
        make("Hello!")
    with pytest.raises(ConfigurationError, match="must not be given together"):
        make(["Hello!"], answer=str.upper)


@pytest.mark.parametrize("make", ENGINES)
def test_answers_that_depend_on_the_prompt(make):
    prompts = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "Sunny." if "weather" in prompt else "Hm?"

    session = ChatSession(make(answer=answer), instructions="Be brief.")
    assert session.respond("Hi") == "Hm?"
    assert session.respond("How is the weather?") == "Sunny."
    assert session.retry() == "Sunny."
    assert session.fork().respond("And now?") == "Sunny."
    assert len(prompts) == 4
    assert prompts[0].startswith("<|start|>system\nBe brief.")
    assert prompts[0].endswith("<|start|>assistant\n")


def test_what_an_answer_raises_is_the_programs_own():
    def answer(prompt: str) -> str:
        raise KeyError(prompt)

    with pytest.raises(KeyError):
        ChatSession(FakeEngine(answer=answer)).respond("Hi")


def test_a_fake_model_over_real_caches():
    engine = MlxEngine(CachingModel(lambda ids: ord("h"), 300), ToyTokenizer())
    assert ChatSession(engine).respond("Say h.", max_tokens=3) == "hhh"
    assert CachingModel.__module__ == "segue.testing"
    assert "CachingModel" in dir(segue.testing)


@pytest.mark.parametrize("code", ["import segue.testing", "from segue.testing import *"])
def test_fakes_need_no_mlx(code):
    code += "; import sys; print({'mlx', 'mlx_lm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_reprs_say_what_a_thing_is():
    session = ChatSession(FakeEngine(["Hello there!", "Fine."]))
    reply = session.stream("Hi")
    assert repr(reply) == "<Reply, live: 0 tokens, ''>"
    for _ in reply:
        pass
    assert repr(reply) == f"<Reply, ended, stop: {len(reply.tokens)} tokens, 'Hello there!'>"
    with session.stream("x" * 10) as cut:
        next(cut)
    assert repr(cut) == "<Reply, ended, cut short: 1 tokens, 'F'>"
    long = ChatSession(FakeEngine(["x" * 1000])).stream("Hi", max_tokens=1000)
    for _ in long:
        pass
    assert len(repr(long)) < 100
    assert repr(ScriptedModel(["a"])) == "<ScriptedModel: 0 replies said, 1 left>"
    assert repr(FakeEngine(lambda ids: 97)) == (
        "<FakeEngine: <ScriptedModel: says what a rule says>>"
    )
    assert repr(BareEngine(answer=str)) == "<BareEngine: <ScriptedModel: answers>>"
    assert repr(toy_engine()).startswith("<MlxEngine ")
    assert repr(ChatSession(FakeEngine())) == (
        "<ChatSession with fake: 0 messages, 0 tokens cached>"
    )


def test_completion_offers_what_is_public_and_nothing_else():
    assert dir(segue) == sorted(segue.__all__)
    names: dict[str, object] = {}
    exec("from segue import *", names)
    assert {*names} - {"__builtins__"} == set(segue.__all__)

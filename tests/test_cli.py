"""The segue command, by its whole output."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from chats import Typed, alone, converse
from rich.console import Console

import segue
from segue import ChatSession, GenerationConfig
from segue.cli import main as cli
from segue.cli.chat import TerminalChat
from segue.cli.commands import COMMANDS
from segue.cli.idle import CHUNK, reading_ahead
from segue.cli.markdown import MarkdownStream, split_finished
from segue.cli.options import HELP, LEFT_OUT
from segue.cli.start import Start
from segue.cli.statistics import turn_line, usage_table
from segue.testing import FakeEngine, ToyTokenizer


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    return done.value.code


def complaint(capsys, *arguments: str) -> str:
    """What a failing command says: one line on standard error, nothing else, and exit code 2."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("segue: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def _showwarning(monkeypatch):
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"segue {segue.__version__}\n"


def test_help_names_the_commands(capsys):
    assert run("--help") == 0
    assert capsys.readouterr().out == (
        "Usage: segue [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  Talk with a local language model that never reads a token twice.\n"
        "\n"
        "Options:\n"
        "  --version   Show the version and exit.\n"
        "  -h, --help  Show this message and exit.\n"
        "\n"
        "Commands:\n"
        "  cache-prompt  Read a long text once and keep its KV cache.\n"
        "  chat          Hold a conversation in the terminal.\n"
        "  doctor        Show what runs models here, and what could speed them up.\n"
        "  sessions      List, show, export and delete saved sessions.\n"
    )


def test_every_setting_has_an_option(capsys):
    assert run("chat", "--help") == 0
    shown = capsys.readouterr().out
    fields = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert fields == set(HELP) | set(LEFT_OUT)
    for name in HELP:
        assert f"--{name.replace('_', '-')} " in shown


def test_options_make_the_settings(monkeypatch):
    seen = []
    monkeypatch.setattr("segue.cli.chat.run", lambda *arguments: seen.append(arguments))
    arguments = ["chat", "--model", "m", "--system", "s", "--max-tokens", "9", "--top-p", "0.5"]
    arguments += ["--stop", "A", "--stop", "B", "--logit-bias", "42=-5", "--kv-bits", "8"]
    assert run(*arguments) == 0
    config = GenerationConfig(
        max_tokens=9,
        top_p=0.5,
        stop=("A", "B"),
        logit_bias={42: -5.0},
        kv_bits=8,
        prefill_step_size=512,
    )
    given = {"max_tokens", "top_p", "stop", "logit_bias", "kv_bits"}
    assert seen == [("m", Start("s", given=given), config)]


def test_a_chat_may_start_from_a_cache_and_with_a_draft(monkeypatch):
    seen = []
    monkeypatch.setattr("segue.cli.chat.run", lambda *arguments: seen.append(arguments[1]))
    arguments = ["chat", "--cache", "c", "--draft", "prompt-lookup", "--num-draft-tokens", "3"]
    assert run(*arguments) == 0
    assert seen == [Start(None, Path("c"), "prompt-lookup", 3)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat", "--nope"], "No such option '--nope'"),
        (["nope"], "No such command 'nope'"),
        (["chat", "--max-tokens", "many"], "'many' is not a valid integer"),
        (["chat", "--max-tokens", "-1"], "max_tokens=-1 is out of range. Use 0 or more."),
        (["chat", "--logit-bias", "x"], "not of the form TOKEN=VALUE"),
        (["chat", "--kv-bits", "8", "--max-kv-size", "64"], "can't go together"),
        (["chat", "--model", "smolm2"], "Did you mean 'smollm2'?"),
        (["chat", "--model", "/missing.gguf"], "There is no file or folder '/missing.gguf'."),
        (["chat", "--model", __file__], "is not a GGUF file."),
        (["chat", "surplus"], "unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(capsys, arguments, told):
    assert told in complaint(capsys, *arguments)


def test_without_a_terminal_each_line_is_answered_plainly(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\n  ho\n"))
    monkeypatch.setattr("segue.mlx.loading.load", lambda name: FakeEngine(["hello", "*fine*"]))
    assert run("chat") == 0
    assert capsys.readouterr() == ("hello\n*fine*\n", "")


@pytest.mark.smollm2
def test_without_a_terminal_the_real_model_answers(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("What is the capital of France? Answer briefly.\n")
    )
    assert run("chat") == 0
    assert capsys.readouterr() == ("The capital of France is Paris.\n", "")


def test_doctor_names_device_memory_and_versions(capsys):
    assert run("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split("  ")[0].strip() for line in lines}
    assert {"device", "memory", "matrix product", "segue", "mlx", "mlx-lm", "python"} <= named
    product = next(line for line in lines if line.startswith("matrix product"))
    assert float(product.split()[2].replace(",", "")) > 0


def test_doctor_tells_a_machine_without_a_good_blas_what_to_do(capsys, monkeypatch):
    from segue.mlx import blas

    monkeypatch.setattr(blas, "status", blas.BlasStatus(True, problem="Slow. Do this."))
    assert run("doctor") == 0
    assert capsys.readouterr().out.endswith("\nSlow. Do this.\n")


# --- the conversation ---------------------------------------------------------------------------


def test_a_turn_shows_the_reply_and_one_quiet_line():
    shown, session = converse("hi", "ho")
    assert [message.content for message in session.history] == ["hi", "hello", "ho", "fine"]
    replies = [line.strip() for line in shown.splitlines() if line.strip()]
    assert replies[0] == "hello"
    assert replies[2] == "fine"
    first, second = replies[1], replies[3]
    assert first.startswith("21 tokens read · 0 reused · first token ")
    assert second.startswith("22 tokens read · 23 reused · first token ")
    assert first.endswith(" tokens/s")


class ReadAhead(ChatSession):
    """Tells whenever it has read ahead all there is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.done = threading.Semaphore(0)

    def settle(self, **kwargs):
        super().settle(**kwargs)
        self.done.release()

    def prewarm(self, **kwargs):
        super().prewarm(**kwargs)
        self.done.release()


class Thinking(Typed):
    """A person who takes their time: until the model has read all there is."""

    def __init__(self, session, *lines):
        super().__init__(*lines)
        self._session = session

    def ask(self):
        assert self._session.done.acquire(timeout=20)
        return super().ask()


def test_the_model_reads_ahead_while_the_person_types():
    session = ReadAhead(FakeEngine(["hello", "fine"]), instructions="be kind " * 20)
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    TerminalChat(alone(session), console, Thinking(session, "hi", "ho")).run()
    first, second = session.usage.turns
    assert first.cached_tokens == session.usage.prewarmed_tokens > 160
    assert second.fed_tokens <= len("ho<end>\n<start>assistant\n")
    assert session.usage.settled_tokens > 0


def test_whoever_presses_enter_waits_for_one_chunk_at_most():
    session = ChatSession(FakeEngine(["hello"]), instructions="be kind " * 200)
    fed = []
    model = session._engine.model
    forward, begun, go_on = model.forward, threading.Event(), threading.Event()

    def slow(cache, ids):
        fed.append(len(ids))
        begun.set()
        assert go_on.wait(20)
        forward(cache, ids)

    model.forward = slow
    with reading_ahead(session):
        assert begun.wait(20)
        threading.Timer(0.05, go_on.set).start()
    assert len(fed) == 1
    assert fed[0] <= CHUNK == session.cached_tokens
    assert session.respond("hi") == "hello"


def test_what_goes_wrong_while_reading_ahead_is_left_to_the_next_turn():
    engine = FakeEngine(["hello"], fail_at=[1])
    session = ChatSession(engine, instructions="be kind")
    forward, begun = engine.model.forward, threading.Event()

    def tell(cache, ids):
        begun.set()
        forward(cache, ids)

    engine.model.forward = tell
    with reading_ahead(session):
        assert begun.wait(20)
    assert session.respond("hi") == "hello"


class Marking(ToyTokenizer):
    reasoning_tags = ("<think>", "</think>")


def test_reasoning_is_shown_as_a_quotation_and_left_out_of_pipes(capsys, monkeypatch):
    said = "<think>\nthe world\n</think>\n\nyes"
    shown, session = converse("hi", script=[said], tokenizer=Marking())
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert "the world" in lines[0]
    assert lines[1] == "yes"
    assert session.history[-1].reasoning == "the world"
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    engine = FakeEngine([said], tokenizer=Marking())
    monkeypatch.setattr("segue.mlx.loading.load", lambda name: engine)
    assert run("chat") == 0
    assert capsys.readouterr().out == "yes\n"


def test_ctrl_c_at_the_prompt_asks_again_and_ctrl_d_leaves():
    _, session = converse(KeyboardInterrupt(), "hi", EOFError(), "never")
    assert len(session.history) == 2


def test_ctrl_c_stops_the_reply_and_keeps_what_was_said():
    shown, session = converse(
        "hi", "ho", script=["hello there", "fine"], fail_at=[4], failure=KeyboardInterrupt()
    )
    assert [message.content for message in session.history] == ["hi", "hello ", "ho", "fine"]
    assert "stopped · " in shown


def test_a_failing_model_is_told_and_the_conversation_goes_on():
    shown, session = converse("hi", "ho", fail_at=[1])
    assert "The fake model failed in forward pass 1" in shown
    assert len(session.history) == 4


def test_commands():
    shown, session = converse(
        "/history",
        "/system Be kind.",
        "hi",
        "/system",
        "/history",
        "/stats",
        "/nope",
        "//x",
        "/quit",
        "no",
    )
    assert session.instructions == "Be kind."
    assert "Nothing has been said yet." in shown
    assert "There is no /nope" in shown
    assert "user:" in shown
    assert "tokens generated" in shown
    assert session.history[-2].content == "/x"
    cleared, session = converse("hi", "/clear", "/help")
    assert session.history == ()
    for command in COMMANDS.values():
        assert command.usage in cleared
        assert command.help in cleared


# --- prompt caches ------------------------------------------------------------------------------


def cache_prompt(monkeypatch, engine, *arguments: str) -> int:
    monkeypatch.setattr("segue.mlx.loading.load", lambda name: engine)
    return run("cache-prompt", *arguments)


def test_a_text_is_read_once_and_talked_about(capsys, monkeypatch, tmp_path):
    (tmp_path / "text").write_text("A long text.\n")
    engine = FakeEngine(["yes", "no"])
    out = tmp_path / "c.safetensors"
    assert cache_prompt(monkeypatch, engine, str(tmp_path / "text"), "-o", str(out)) == 0
    said, err = capsys.readouterr()
    assert re.fullmatch(
        rf"(\d+) tokens read in \d+\.\d s \(\d+\.\d tokens/s\); {out} has 0\.0 MiB\n", said
    )
    assert err == ""
    fed = engine.model.fed
    assert sum(map(len, fed)) == int(said.split()[0])
    count = len(fed)
    monkeypatch.setattr(sys, "stdin", io.StringIO("is it?\n"))
    assert run("chat", "--cache", str(out)) == 0
    assert capsys.readouterr().out == "yes\n"
    # Only what came behind the text was read.
    assert sum(map(len, fed[count : count + 1])) < 40
    assert "A long text." in engine.tokenizer.decode(engine.contexts[-1].cache[0])


def test_a_text_may_come_from_standard_input(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\n".encode())))
    out = tmp_path / "c"
    assert cache_prompt(monkeypatch, FakeEngine(), "-", "-o", str(out)) == 0
    assert "é" in segue.load_prompt_cache(out, FakeEngine()).instructions


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("missing", "out", "missing can't be read: No such file"),
        (".", "out", ". can't be read: Is a directory"),
        ("empty", "out", "empty holds no text"),
        ("binary", "out", "binary is not UTF-8 text (byte 1)"),
        ("text", "no/out", "no/out can't be written"),
        ("text", ".", ". can't be written"),
    ],
)
def test_what_can_not_be_read_or_written_is_told_before_the_model_is_loaded(
    capsys, monkeypatch, tmp_path, source, output, told
):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"a\xff")
    (tmp_path / "text").write_text("words")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segue.mlx.loading.load", lambda name: pytest.fail("loaded"))
    assert told in complaint(capsys, "cache-prompt", source, "-o", output)


def test_a_template_that_leaves_the_text_out_is_told(capsys, monkeypatch, tmp_path):
    class Deaf(ToyTokenizer):
        def render(self, messages, **kwargs):
            return super().render(messages[-1:], **kwargs)

    (tmp_path / "text").write_text("words")
    monkeypatch.setattr("segue.mlx.loading.load", lambda name: FakeEngine(tokenizer=Deaf()))
    arguments = ["cache-prompt", str(tmp_path / "text"), "-o", str(tmp_path / "c")]
    assert "leaves system messages out" in complaint(capsys, *arguments)
    assert not (tmp_path / "c").exists()


def test_the_cache_of_a_chat_is_kept_and_taken_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown, session = converse(
        "/save-cache",
        "/save-cache d",
        "hi",
        f"/save-cache {tmp_path}/c",
        "/save-cache ~nosuchuser/x",
    )
    assert "~nosuchuser/x can't be written" in " ".join(shown.split())
    assert "Name the file: /save-cache PATH" in shown
    assert "This session has no cache yet" in shown
    assert not Path("d").exists()
    cache = segue.load_prompt_cache(tmp_path / "c", session._engine)
    assert cache.history == session.history
    assert f"{session.cached_tokens} tokens are in" in shown


def test_a_chat_tells_what_it_has_cost():
    session = ChatSession(FakeEngine(["one", "two"]), instructions="be kind")
    session.prewarm()
    session.respond("hi")
    console = Console(file=io.StringIO())
    console.print(usage_table(session))
    shown = console.file.getvalue()
    assert re.search(r"turns +1\b", shown)
    assert re.search(r"tokens read ahead +\d\d\b", shown)
    assert "marks" not in shown
    assert "accepted" not in shown


@pytest.mark.smollm2
def test_the_real_model_talks_on_top_of_a_text_that_was_read_before(tmp_path):
    done = shell(
        "echo 'The dog of the lighthouse keeper is called Bruno.' | "
        f"segue cache-prompt - -o {tmp_path}/c.safetensors && "
        "echo 'What is the name of the dog?' | "
        f"segue chat --max-tokens 24 --cache {tmp_path}/c.safetensors --draft prompt-lookup"
    )
    assert done.returncode == 0, done.stderr
    read, said = done.stdout.decode().splitlines()
    assert re.match(r"\d+ tokens read in ", read)
    assert "Bruno" in said


# --- Markdown that grows ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("one", ""),
        ("one\n\n", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n\n- a\n\n- b", ""),
        ("- a\n\n- b\n\nthree", "- a\n\n- b\n\n"),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("~~~\n```\n\nx\n~~~\n\ny", "~~~\n```\n\nx\n~~~\n\n"),
        ("1. a\n\n2. b", ""),
        ("a\n\n    indented", ""),
    ],
)
def test_blocks_are_finished_only_when_nothing_can_change_them(text, finished):
    assert split_finished(text) == (finished, text[len(finished) :])


def test_a_streamed_text_is_shown_whole_once():
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    text = "# Title\n\nSome *words* here.\n\n```python\nx = 1\n```\n\n- a\n- b\n"
    with MarkdownStream(console) as shown:
        for letter in text:
            shown.write(letter)
    output = console.file.getvalue()
    for part in ("Title", "Some words here.", "x = 1", "• a", "• b"):
        assert output.count(part) == 1


# --- what people and shells do ------------------------------------------------------------------


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    line = command.replace("segue", f"{sys.executable} -m segue.cli.main")
    return subprocess.run(["bash", "-c", line], capture_output=True, timeout=120)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (r"printf '\xff\n' | segue chat --max-tokens 1", 0),
        ("echo é | PYTHONIOENCODING=ascii segue chat --max-tokens 4", 0),
        ("segue chat <&-", 0),
        ("echo hi | segue chat --kv-bits 3 --kv-group-size 128 --quantized-kv-start 0", 2),
        ("echo hi | segue chat --max-tokens 4 > /dev/full", 2),
        (r"echo hi | segue chat --system $'\xff'", 2),
        ("segue chat --model '~nosuchuser/x'", 2),
        ("segue cache-prompt - -o /tmp/never <&-", 2),
    ],
)
def test_nothing_ends_in_a_traceback(command, code):
    done = shell(command)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == (1 if code else 0)


def test_without_a_command_the_help_is_shown(capsys):
    assert run() == 2
    assert capsys.readouterr().out.startswith("Usage: segue [OPTIONS] COMMAND [ARGS]...\n\n")


def test_history_shows_a_persons_words_as_typed():
    shown, _ = converse("*star* [bold] __init__", "/history")
    assert "*star* [bold] __init__" in shown


def test_a_model_that_fails_in_its_own_way_ends_the_turn_not_the_conversation():
    shown, session = converse("hi", "ho", fail_at=[1], failure=ZeroDivisionError("odd"))
    assert "The turn failed (ZeroDivisionError): odd" in shown
    assert len(session.history) == 4


def test_blocks_of_a_streamed_text_keep_their_distance():
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    with MarkdownStream(console) as shown:
        for letter in "One.\n\nTwo.\n\n- a\n\nThree.":
            shown.write(letter)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert lines == ["One.", "", "Two.", "", "• a", "", "Three."]


def test_a_prompt_stopped_in_its_middle_counts_what_was_read():
    session = ChatSession(FakeEngine(["x"]), generation=GenerationConfig(prefill_step_size=4))
    with pytest.raises(KeyboardInterrupt):
        session.respond("a longer prompt", prompt_progress_callback=stop_at_eight)
    assert session.usage.fed_tokens == 8
    assert turn_line(session.usage.turns[0], None, None, stopped=True) == (
        "stopped · 8 tokens read · 0 reused"
    )


def stop_at_eight(fed, total):
    if fed == 8:
        raise KeyboardInterrupt

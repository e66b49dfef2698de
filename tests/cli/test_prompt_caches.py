"""Prompt caches at the command line: made, talked on top of, kept."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

import segue
from kit.chats import converse
from kit.command import complaint, run, shell
from kit.probe import engine_of
from segue.testing import FakeEngine, ToyTokenizer


def cache_prompt(monkeypatch, engine, *arguments: str) -> int:
    monkeypatch.setattr("segue.loading.load", lambda name: engine)
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
    assert "é" in segue.load_prompt_cache(out, FakeEngine()).conversation.instructions


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("missing", "out", "missing can't be read: No such file"),
        (".", "out", ". can't be read: Is a directory"),
        ("empty", "out", "empty has no text"),
        ("binary", "out", "binary must be UTF-8 text, but byte 1 is not"),
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
    monkeypatch.setattr("segue.loading.load", lambda name: pytest.fail("loaded"))
    assert told in complaint(capsys, "cache-prompt", source, "-o", output)


def test_a_template_that_leaves_the_text_out_is_told(capsys, monkeypatch, tmp_path):
    class Deaf(ToyTokenizer):
        def render(self, messages, **kwargs):
            return super().render(messages[-1:], **kwargs)

    (tmp_path / "text").write_text("words")
    monkeypatch.setattr("segue.loading.load", lambda name: FakeEngine(tokenizer=Deaf()))
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
    cache = segue.load_prompt_cache(tmp_path / "c", engine_of(session))
    assert cache.conversation.messages == session.history
    assert f"Saved {session.cached_tokens} tokens in" in shown


def test_a_cache_replaces_nothing(tmp_path):
    (tmp_path / "notes").write_text("mine")
    shown, _ = converse("hi", f"/save-cache {tmp_path}/notes", "/save-cache /dev/null")
    assert f"{tmp_path}/notes already exists." in " ".join(shown.split())
    assert (tmp_path / "notes").read_text() == "mine"
    assert "tokens in /dev/null" in shown


@pytest.mark.proof
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

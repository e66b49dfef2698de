"""The segue command, by its whole output."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest

import segue
from kit.command import complaint, run, shell
from segue import GenerationConfig
from segue.cli.chat.start import Start
from segue.cli.options import HELP, LEFT_OUT
from segue.testing import FakeEngine


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
    monkeypatch.setattr("segue.cli.chat.chat.run", lambda *arguments: seen.append(arguments))
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
    monkeypatch.setattr("segue.cli.chat.chat.run", lambda *arguments: seen.append(arguments[1]))
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
    monkeypatch.setattr("segue.loading.load", lambda name: FakeEngine(["hello", "*fine*"]))
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


@pytest.mark.proof
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

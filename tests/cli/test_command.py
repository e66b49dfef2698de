"""The segue command, by its whole output."""

from __future__ import annotations

import ast
import dataclasses
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import segue
from kit.command import complaint, run, shell
from segue import GenerationConfig
from segue.cli.chat.start import Start
from segue.cli.options import LEFT_OUT, OPTIONS
from segue.config import CacheConfig
from segue.testing import FakeEngine

PACKAGE = Path(segue.__file__).parent


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
        "  cache-prompt  Read a long text once and save its KV cache.\n"
        "  chat          Talk with a model in the terminal.\n"
        "  doctor        Show what models run on here, and what would be faster.\n"
        "  sessions      List, show, export and delete saved sessions.\n"
    )


def test_every_setting_has_an_option(capsys):
    assert run("chat", "--help") == 0
    shown = capsys.readouterr().out
    fields = {
        field.name
        for settings in (GenerationConfig, CacheConfig)
        for field in dataclasses.fields(settings)
    }
    assert fields == set(OPTIONS) | set(LEFT_OUT)
    for name in OPTIONS:
        option = f"--{name.replace('_', '-')}"
        assert f"{option} " in shown or f"--[no-]{option[2:]} " in shown


# The options of a chat by the groups of its help.
GROUPS = {
    "Model": ["--model"],
    "Session": ["--system", "--session", "--cache", "--lines"],
    "Replies": ["--on-overflow", "--max-tokens", "--stop", "--stop-in-reasoning"],
    "Sampling": ["--recommended", "--temperature", "--top-p", "--min-p", "--min-tokens-to-keep",
                 "--top-k", "--xtc-probability", "--xtc-threshold", "--seed"],
    "Penalties": ["--repetition-penalty", "--repetition-context-size", "--presence-penalty",
                  "--presence-context-size", "--frequency-penalty", "--frequency-context-size",
                  "--logit-bias"],
    "KV cache": ["--prefill-step-size", "--kv-bits", "--kv-group-size", "--quantized-kv-start",
                 "--max-kv-size", "--max-checkpoints", "--max-checkpoint-bytes"],
    "Drafts": ["--num-draft-tokens", "--draft"],
    "Other": ["--help"],
}  # fmt: skip


def grouped(text: str) -> dict[str, list[str]]:
    """The long options that a help lists, by group."""
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z].*:", line):
            options = groups.setdefault(line[:-1], [])
        elif option := re.match(r"  (?:-\w, )?(--(?:\[no-\])?[\w-]+)", line):
            options.append(option[1].replace("[no-]", ""))
    return groups


def test_the_help_of_a_chat_is_in_groups_that_line_up(capsys):
    assert run("chat", "--help") == 0
    text = capsys.readouterr().out
    assert grouped(text) == GROUPS
    starts = {
        found.end()
        for found in (re.match(r"  -.*?  +", line) for line in text.splitlines())
        if found
    }
    assert len(starts) == 1
    # Each option stands beside what it does.
    assert starts.pop() < 32
    assert "  --[no-]stop-in-reasoning     Let" in text
    for line in ("  -m, --model NAME ", "  -s, --system TEXT ", "  -t, --temperature NUMBER "):
        assert line in text


def test_the_help_of_cache_prompt_is_in_groups(capsys):
    assert run("cache-prompt", "--help") == 0
    assert grouped(capsys.readouterr().out) == {
        "Model": ["--model"],
        "Output": ["--output"],
        "KV cache": [name for name in GROUPS["KV cache"] if "checkpoint" not in name],
        "Other": ["--help"],
    }


def test_a_help_line_stands_alone():
    for name, setting in OPTIONS.items():
        assert setting.help.endswith("."), name
        assert not set(re.findall(r"\w+", setting.help.lower())) & {"it", "its", "those", "they"}, (
            name
        )


def test_common_options_have_short_forms(monkeypatch):
    seen = []
    monkeypatch.setattr("segue.cli.chat.run.run", lambda *arguments: seen.append(arguments))
    assert run("chat", "-m", "m", "-s", "Be kind.", "-t", "0.5") == 0
    assert run("chat", "--model", "m", "--system", "Be kind.", "--temperature", "0.5") == 0
    assert seen[0] == seen[1]
    assert seen[0][0] == "m"
    assert seen[0][1] == Start("Be kind.", given={"temperature"})
    assert seen[0][2].temperature == 0.5


def imports(file: Path) -> Iterator[str]:
    """The modules that a file of the package imports, inside functions too."""
    package = file.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


CLI = sorted((PACKAGE / "cli").rglob("*.py"))


@pytest.mark.parametrize("file", CLI, ids=lambda file: str(file.relative_to(PACKAGE / "cli")))
def test_the_command_knows_no_engine(file):
    assert [
        name for name in imports(file) if re.match(r"(segue\.mlx|mlx|mlx_lm|transformers)\b", name)
    ] == []


def test_commands_do_not_import_the_chat_that_runs_them():
    seen = {name for file in CLI if file.parent.name == "commands" for name in imports(file)}
    assert "segue.cli.chat.statistics.usage_table" in seen
    assert [name for name in seen if re.match(r"segue\.cli\.chat\.(chat|run|start)\b", name)] == []


def test_options_make_the_settings(monkeypatch):
    seen = []
    monkeypatch.setattr("segue.cli.chat.run.run", lambda *arguments: seen.append(arguments))
    arguments = ["chat", "--model", "m", "--system", "s", "--max-tokens", "9", "--top-p", "0.5"]
    arguments += ["--stop", "A", "--stop", "B", "--logit-bias", "42=-5", "--kv-bits", "8"]
    assert run(*arguments) == 0
    config = GenerationConfig(
        max_tokens=9,
        top_p=0.5,
        stop=("A", "B"),
        logit_bias={42: -5.0},
        prefill_step_size=512,
    )
    given = {"max_tokens", "top_p", "stop", "logit_bias", "kv_bits"}
    assert seen == [("m", Start("s", given=given), config, CacheConfig(kv_bits=8))]


def test_a_chat_may_start_from_a_cache_and_with_a_draft(monkeypatch):
    seen = []
    monkeypatch.setattr("segue.cli.chat.run.run", lambda *arguments: seen.append(arguments[1:3]))
    arguments = ["chat", "--cache", "c", "--draft", "prompt-lookup", "--num-draft-tokens", "3"]
    assert run(*arguments) == 0
    ((start, generation),) = seen
    assert start == Start(None, Path("c"), "prompt-lookup", given={"num_draft_tokens"})
    assert generation.num_draft_tokens == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat", "--nope"], "No such option '--nope'"),
        (["nope"], "No such command 'nope'"),
        (["chat", "--max-tokens", "many"], "'many' is not a valid integer"),
        (["chat", "--max-tokens", "-1"], "max_tokens must be 0 or more, not -1."),
        (["chat", "--logit-bias", "x"], "must be TOKEN=VALUE, such as 42=-5, not 'x'."),
        (["chat", "--kv-bits", "8", "--max-kv-size", "64"], "can't go together"),
        (["chat", "--model", "smolm2"], "Did you mean 'smollm2'?"),
        (["chat", "--model", "/missing.gguf"], "There is no file or folder '/missing.gguf'."),
        (["chat", "--model", __file__], "is not a GGUF file."),
        (["chat", "surplus"], "unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(capsys, arguments, told):
    assert told in complaint(capsys, *arguments)


def test_with_lines_each_line_is_answered_plainly(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\n  ho\n"))
    monkeypatch.setattr("segue.loading.load", lambda name: FakeEngine(["hello", "*fine*"]))
    assert run("chat", "--lines") == 0
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
        (r"printf '\xff\n' | segue chat --max-tokens 1", 2),
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


def test_no_columns_are_no_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert run("sessions", "--help") == 0
    assert "list" in capsys.readouterr().out
    assert "COLUMNS" not in os.environ

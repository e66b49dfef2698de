"""Markdown that is shown as it grows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from segue.cli.chat.markdown import MarkdownStream, split_finished


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


def test_blocks_of_a_streamed_text_keep_their_distance():
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    with MarkdownStream(console) as shown:
        for letter in "One.\n\nTwo.\n\n- a\n\nThree.":
            shown.write(letter)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert lines == ["One.", "", "Two.", "", "• a", "", "Three."]

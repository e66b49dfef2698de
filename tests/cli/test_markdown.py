"""What was said is what the terminal shows: Markdown is styled, and nothing is added or lost."""

from __future__ import annotations

import io
import re
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from segue.cli.chat.markdown import MarkdownStream
from segue.cli.output import styling
from segue.cli.output.screen import show_markdown, show_text
from segue.cli.output.styling import LONGEST_SPAN, LONGEST_START, MarkdownStyler
from segue.printable import printable

STYLE_CODES = re.compile("\x1b" + r"\[[0-9;]*m")

# Each was shown as something else once, or is a relative of one that was.
SAID = [
    "Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you.",
    "Use the <div> tag, or <b>bold</b>; List<int>, vector<string>, cd <PATH>; #include <stdio.h>",
    "<html>\n<body>Hello</body>\n</html>\n\n<!-- a remark -->\n\n<think>hmm</think>",
    r"\(x^2 + y^2\) and \[a\] and 2*3*4*5 and $a_1 b_2$ snake_case_name __init__ __init__.py",
    r"C:\_tmp\*.* and \\server\share, \*not emphasis\*, a\`b, \<b\>, 1\. and trailing \ ",
    "[text](https://example.org 'title') ![image](a.png) [ref][1] [^1]\n\n[1]: <https://x.y>\n",
    "3. three\n7. seven\n7) again\n10. ten\n* star\n+ plus\n- minus\n  - inner\n\n1. one",
    "&amp; &lt;b&gt; &nbsp; &#42; © &copy; (c) -- --- ... \"quoted\" 'so'",
    "Title\n=====\n\nOther\n-----\n\n---\n***\n___\n* * *\n",
    "| a | b |\n|---|:-:|\n| **1** | `2|3` |\n\nTerm\n: definition\n",
    "two spaces  \nbreak\\\nhere\ttab\t\tand trailing   \n   \n\n\n\nfour blank lines",
    "    indented code\n\ttab code\n\n\n",
    "```python\ndef f(x):\n    return x  # `**no**`\n```\nafter\n~~~~\n```\n~~~\n~~~~\n",
    "- ```sh\n  ls *.py\n  ```\n- next **bold**\n1. ```\n   x\n   ```",
    "```not a fence``` but code, ``a`b`` and `` ` `` and ` lone\n```unclosed\n*x*",
    "> quoted *words*\n>> twice\n> ```\n> code\n> ```\n",
    "# One #\n####### seven\n#hashtag\n#!/bin/sh\n## \n#",
    ":smile: [bold]red[/bold] [link=https://x.y]z[/link] [/] [[x]] {x} %s \\[bold]",
    "**bold** *it* ***both*** ~~gone~~ **a *b* c** **un closed\n*x **y* z** f(*args, **kwargs)",
    "int *p, *q; char **argv; a * b * c; **/*.py and **/*.js; /* c */ 5*x, 这是**重点**内容",
    "café à la *crème* 👩‍💻 🏴󠁧󠁢󠁥󠁮󠁧󠁿 نص ‏עברית‏ ไทย​ไทย e\u0301 \u00a0nbsp\u00a0 soft\u00adhyphen \ufeff",
    "\n\n\nleading blank lines",
    "x" * 1000,
    "    x = 'a long line of code' + " + "'more' + " * 40 + "'end'\n",
    "*" * 500 + "a" + "`" * 500 + "\n" + " " * 500 + "```\n" + "#" * 500 + " x",
    "- " * 300 + "```\nx\n",
    "",
    "\n",
    " ",
]
# What commands a terminal, and what must be seen instead.
COMMANDS = {
    "\x1b[2J\x1b[H": "␛[2J␛[H",  # clears the screen
    "\x1b]52;c;ZWNobyBoaQ==\x07": "␛]52;c;ZWNobyBoaQ==␇",  # writes the clipboard
    "\x1b]0;title\x1b\\": "␛]0;title␛\\",
    "\x1bc": "␛c",
    "\x1bP+q544e\x1b\\": "␛P+q544e␛\\",
    "\x9b2J": "<U+009B>2J",
    "\x90q\x9c\x9d0;t\x9c\x85": "<U+0090>q<U+009C><U+009D>0;t<U+009C><U+0085>",
    "rm -rf /\rls   ": "rm -rf /␍ls   ",
    "abc\b\b\bxyz\x7f": "abc␈␈␈xyz␡",
    "\0\a\v\f\x0e\x0f\x05\x1a": "␀␇␋␌␎␏␅␚",
    "a\r\nb": "a␍\nb",
    "access \u202elevel\u202c \u2066x\u2069": "access <U+202E>level<U+202C> <U+2066>x<U+2069>",
    "a\u2028b\u2029c": "a<U+2028>b<U+2029>c",
    "half \ud83d of": "half <U+D83D> of",
}

letters = st.one_of(
    st.sampled_from("*`~_#>-+.\\ \n\t()[]<>&:|!1a9é漢\x1b\r\x07\x9b\u202e"),
    st.characters(),
)
pieces = st.lists(
    st.one_of(
        st.text(letters, max_size=12),
        st.sampled_from(
            ["**", "```", "```py\n", "\n", "\n\n", "> ", "- ", "1. ", "# ", "``", "~~~"]
        ),
        st.sampled_from(SAID),
        st.sampled_from(list(COMMANDS)),
    ),
    max_size=12,
)
consoles = st.fixed_dictionaries(
    {
        "width": st.sampled_from([1, 2, 7, 40, 80, 300]),
        "force_terminal": st.booleans(),
        "color_system": st.sampled_from([None, "standard", "256", "truecolor"]),
        "no_color": st.booleans(),
        "_environ": st.sampled_from(
            [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}]
        ),
    }
)


def characters(output: str) -> str:
    """What a terminal shows, without the styles."""
    return STYLE_CODES.sub("", output)


def ended(text: str) -> str:
    """A text as the chat shows it: whatever comes next begins a line."""
    return text if not text or text.endswith("\n") else text + "\n"


def stream(chunks, **settings) -> str:
    console = Console(file=io.StringIO(), **{"width": 60, "force_terminal": True, **settings})
    with MarkdownStream(console) as shown:
        for chunk in chunks:
            shown.write(chunk)
    return console.file.getvalue()


def styled(chunks) -> list[tuple[str, str]]:
    """The characters with their styles."""
    styler = MarkdownStyler()
    found = [piece for chunk in chunks for piece in styler.feed(chunk)] + styler.finish()
    return [(letter, style) for text, style in found for letter in text]


def spans(text: str) -> list[tuple[str, str]]:
    """The styled parts of a text."""
    found: list[tuple[str, str]] = []
    for letter, style in styled([text]):
        if found and found[-1][1] == style:
            found[-1] = (found[-1][0] + letter, style)
        else:
            found.append((letter, style))
    return [(part, style) for part, style in found if style]


@pytest.mark.parametrize("text", SAID)
@pytest.mark.parametrize("width", [10, 80])
def test_what_is_shown_is_what_was_said(text, width):
    assert characters(stream([text], width=width)) == ended(text)
    assert characters(stream(text, width=width)) == ended(text)


@pytest.mark.parametrize("said", COMMANDS)
def test_what_is_said_commands_no_terminal(said):
    for chunks in ([said], said):
        assert characters(stream(chunks)) == COMMANDS[said] + "\n"


@given(pieces, consoles)
@example(["**bo", "ld** `co", "de`\n``", "`\nx\n```\n"], {"color_system": "truecolor"})
def test_any_text_in_any_pieces_is_shown_as_said(chunks, settings):
    said = printable("".join(chunks))
    assert characters(stream(chunks, **settings)) == ended(said)


@given(pieces, st.data())
def test_a_growing_text_looks_as_if_it_had_come_at_once(chunks, data):
    text = "".join(chunks)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = styled([text])
    assert "".join(letter for letter, _ in whole) == text
    assert styled(cut) == styled(text) == whole


@given(
    st.text(st.sampled_from("**``~#>-1. \n\\ab_é漢"), max_size=60),
    st.lists(st.integers(0, 60), max_size=8),
    st.sampled_from([3, 5, 9]),
    st.sampled_from([3, 6, 12]),
)
def test_a_growing_text_looks_the_same_where_a_wait_ends_too(text, cuts, longest_span, start):
    limits = {"LONGEST_SPAN": longest_span, "LONGEST_START": start}
    cuts = sorted(cut for cut in cuts if cut <= len(text))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    with mock.patch.multiple(styling, **limits):
        assert styled(cut) == styled(text) == styled([text])


@given(pieces, consoles)
def test_other_text_is_shown_as_said_too(chunks, settings):
    said = "".join(chunks)
    for show in (show_text, show_markdown):
        console = Console(file=io.StringIO(), **{"width": 60, "force_terminal": True, **settings})
        show(console, said)
        assert characters(console.file.getvalue()) == ended(printable(said) or "\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**bold** and *it*.", [("**bold**", "bold"), ("*it*", "italic")]),
        ("***both***", [("***both***", "bold italic")]),
        ("a `b` c ``d`e``", [("`b`", "cyan"), ("``d`e``", "cyan")]),
        ("# Title\nText", [("# Title\n", "bold")]),
        ("> quoted **x**\nnot", [("> quoted **x**\n", "italic")]),
        ("```py\na *b* c\n```\n*d*", [("```py\na *b* c\n```\n", "cyan"), ("*d*", "italic")]),
        ("- ```\n  x\n  ```\ny", [("- ```\n  x\n  ```\n", "cyan")]),
        ("````\n```\n````\ny", [("````\n```\n````\n", "cyan")]),
        ("~~~\n```\n~~~\ny", [("~~~\n```\n~~~\n", "cyan")]),
        ("```\nnever closed", [("```\nnever closed", "cyan")]),
        ("```py", [("```py", "cyan")]),
        ("```inline``` x", [("```inline```", "cyan")]),
        ("这是**重点**内容", [("**重点**", "bold")]),
        ("| **a** | `b` |", [("**a**", "bold"), ("`b`", "cyan")]),
        ("**a *b* c**", [("**a *b* c**", "bold")]),
        ("**Note:** x", [("**Note:**", "bold")]),
    ],
)  # fmt: skip
def test_what_is_surely_markdown_is_styled(text, expected):
    assert spans(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4", "a * b * c", "__init__", "snake_case_name", "int *p, *q;", "f(*args, **kwargs)",
        "**/*.py and **/*.js", "5 ** 2 ** 3", "2**3**4", "* item *", "*open", "**open\nclosed**",
        r"\*not\* \`this\`", "#hashtag", "#!/bin/sh", "#include <x>", "####### seven", "a `lone",
        "``", "****", "*****", "* * *", "- * x", "`a\nb`", "/* c */ x /* d */", "<b>x</b>",
        "**" + "x" * LONGEST_SPAN + "**", " " * LONGEST_START + "```\nx\n", "x\n===", "a > b",
    ],
)  # fmt: skip
def test_what_is_not_surely_markdown_stays_as_it_is(text):
    assert spans(text) == []


def test_what_can_not_change_is_shown_at_once():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with MarkdownStream(console) as shown:
        for text in ("Hello, ", "* item without end", "\n1. one", "\n    x = 1", "\n```py\na = 1"):
            before = console.file.getvalue()
            shown.write(text)
            assert console.file.getvalue() == before + text


class Counted(io.StringIO):
    """Counts what is written."""

    written = 0

    def write(self, text):
        self.written += len(text)
        return super().write(text)


@pytest.mark.parametrize(
    "line",
    ["- item\n", "word ", "x", "*x ", "`x ", "```\nx = 1\n", "`", "*", " ", "a\n\n", "| a "],
)
@pytest.mark.parametrize("fence", ["", "```\n"])
def test_a_long_reply_costs_no_more_for_each_word(line, fence):
    for times in (100, 4000):
        console = Console(file=Counted(), width=40, force_terminal=True)
        with MarkdownStream(console) as shown:
            shown.write(fence)
            waiting = 0
            for _ in range(times):
                shown.write(line)
                waiting = max(waiting, shown.waiting)
        # Each character is written once, with at most its own style around it.
        assert console.file.written <= 12 * times * len(line) + 100
        # What waits for its style is what the next word has to look at again.
        assert waiting <= max(LONGEST_SPAN, LONGEST_START) + len(line)


def test_a_remark_is_gone_when_the_text_comes():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with MarkdownStream(console) as shown:
        shown.note("reading")
        assert "reading" in console.file.getvalue()
        shown.write("Hello")
        shown.note("too late")
        shown.write(" you")
    output = console.file.getvalue()
    assert output.endswith("\x1b[?25h\r\x1b[1A\x1b[2KHello you\n")
    assert "too late" not in output


def test_sections_begin_on_lines_of_their_own():
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    with MarkdownStream(console) as shown:
        shown.begin("reasoning:", quiet=True)
        shown.write("**is** it\x1b[2J")
        shown.begin("answer:")
        shown.write("**yes**\n")
    assert console.file.getvalue() == (
        "\x1b[2mreasoning:\x1b[0m\n\x1b[2m**is** it␛[2J\x1b[0m\n"
        "\x1b[2manswer:\x1b[0m\n\x1b[1m**yes**\x1b[0m\n"
    )

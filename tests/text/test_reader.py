"""The reader of a reply: tokens in, pieces of text out, and when and why it is over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from segue import FinishReason, TextKind
from segue.testing import ToyTokenizer
from segue.text.form import ReplyForm, Wrapping
from segue.text.reader import ReplyReader

TOKENIZER = ToyTokenizer(("<think>", "</think>", "hello", " world"))
TAGS = ("<think>", "</think>")


def reader(tags=None, opening="", **settings) -> ReplyReader:
    settings = {"max_tokens": 1000, "form": ReplyForm(tags, opening=opening), **settings}
    return ReplyReader(TOKENIZER.detokenizer(), ends=TOKENIZER.eos_token_ids, **settings)


def test_pieces_come_with_the_token_that_decides_them():
    reading = reader(tags=TAGS)
    pieces = [reading.push(token) for token in TOKENIZER.encode("<think>so</think>hello")]
    assert [[tuple(piece) for piece in each] for each in pieces] == [
        [(TextKind.REASONING, "")],
        [(TextKind.REASONING, "s")],
        [(TextKind.REASONING, "o")],
        [(TextKind.ANSWER, "")],
        [(TextKind.ANSWER, "hello")],
    ]


def test_an_end_has_no_text_and_lets_go_of_what_was_withheld():
    reading = reader(stop=["END"])
    assert [reading.push(token)[0].text for token in TOKENIZER.encode("aE")] == ["a", ""]
    (piece,) = reading.push(TOKENIZER.end_id)
    assert piece.text == "E"
    assert (reading.text, reading.finish_reason) == ("aE", FinishReason.STOP)


def test_a_stop_string_ends_the_reply_and_is_not_part_of_it():
    reading = reader(stop=["wor"])
    for token in TOKENIZER.encode("hello world"):
        reading.push(token)
    assert (reading.text, reading.finish_reason) == ("hello ", FinishReason.STOP)


def test_the_last_token_ends_the_reply():
    reading = reader(max_tokens=2)
    reading.push(104)
    assert reading.finish_reason is None
    reading.push(105)
    assert (reading.text, reading.finish_reason) == ("hi", FinishReason.LENGTH)


def test_running_out_of_tokens_ends_the_reply():
    reading = reader(stop=["END"])
    reading.push(69)
    reading.run_out()
    assert (reading.text, reading.finish_reason) == ("E", FinishReason.LENGTH)


def test_a_prompt_that_opened_the_reasoning_makes_the_first_text_reasoning():
    reading = reader(tags=TAGS, opening="<|start|>assistant\n<think>\n")
    for token in TOKENIZER.encode("hm</think>yes"):
        reading.push(token)
    assert (reading.reasoning, reading.text) == ("hm", "yes")


FORMS = [
    ReplyForm(),
    ReplyForm(TAGS),
    ReplyForm(TAGS, opening="<think>\n"),
    ReplyForm(TAGS, Wrapping("<a>\n", "\n</a>")),
    ReplyForm(TAGS, Wrapping("<a>", "</a>", rendered=False)),
]


@given(
    form=st.sampled_from(FORMS),
    text=st.lists(
        st.sampled_from([*TAGS, "<a>", "</a>", "E", "N", "D", "\n", "<", "hello", "é"]), max_size=14
    ).map("".join),
    stop=st.sampled_from(["END", "\n\n", "<", "</think>", "\n</", "a>", "é"]),
    in_reasoning=st.booleans(),
)
def test_a_stop_string_ends_the_reply_where_the_answer_comes_to_it(form, text, stop, in_reasoning):
    def read(**settings) -> ReplyReader:
        reading = reader(form=form, **settings)
        for token in TOKENIZER.encode(text):
            reading.push(token)
            if reading.finish_reason is not None:
                return reading
        reading.push(TOKENIZER.end_id)
        return reading

    whole, stopped = read(), read(stop=[stop], stop_in_reasoning=in_reasoning)
    reasoning, answer = whole.reasoning, whole.text
    if in_reasoning and stop in reasoning:
        answer = ""
        reasoning = reasoning[: reasoning.index(stop)]
    assert stopped.reasoning == reasoning
    assert stopped.text == answer.partition(stop)[0]
    assert stopped.finish_reason is FinishReason.STOP


@given(st.sampled_from(FORMS), st.integers(0, 40))
def test_a_reply_goes_on_where_it_was_cut(form, cut):
    text = "<think>\nhé END\n\nso\n</think>\n\n<a>\nhello END\n</a>"
    ids = TOKENIZER.encode(text)
    whole, again = reader(form=form), reader(form=form, stop=["END"], stop_in_reasoning=True)
    for token in ids:
        whole.push(token)
    again.resume(ids[:cut])
    for token in ids[cut:]:
        if again.finish_reason is None:
            again.push(token)
    for reading in (whole, again):
        reading.close()
    assert whole.text.startswith(again.text)
    assert whole.reasoning.startswith(again.reasoning)
    assert again.tokens == ids[cut : cut + len(again.tokens)]
    if "END" not in TOKENIZER.decode(ids[cut:]):
        assert (again.text, again.reasoning) == (whole.text, whole.reasoning)


TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "hello", " world", "é", "😀", "E", "N", "D", "\n", "<"]
    ),
    max_size=12,
).map("".join)


@given(
    text=TEXTS,
    stop=st.lists(st.sampled_from(["END", "\n\n", "o w", "<"]), max_size=2),
    tags=st.sampled_from([None, TAGS]),
    cut=st.integers(0, 60),
)
def test_a_reply_that_is_cut_anywhere_loses_nothing_and_says_nothing_twice(text, stop, tags, cut):
    reading = reader(stop=stop, tags=tags)
    pieces: dict[TextKind, str] = dict.fromkeys(TextKind, "")
    for token in TOKENIZER.encode(text)[:cut]:
        for piece in reading.push(token):
            pieces[piece.kind] += piece.text
        assert (reading.text, reading.reasoning) == tuple(pieces.values())
        if reading.finish_reason is not None:
            break
    over = reading.finish_reason
    reading.close()
    closed = reading.text, reading.reasoning
    # What was withheld comes after what was passed on, and closing again adds nothing.
    assert reading.text.startswith(pieces[TextKind.ANSWER])
    assert reading.reasoning.startswith(pieces[TextKind.REASONING])
    if over is not None:
        assert closed == tuple(pieces.values())
    reading.close()
    assert closed == (reading.text, reading.reasoning)
    if tags is None and not stop:
        read = TOKENIZER.decode(reading.tokens)
        assert reading.text == read

"""The reader of a reply: tokens in, pieces of text out, and when and why it is over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from segue import FinishReason, TextKind
from segue.testing import ToyTokenizer
from segue.text.reader import ReplyReader

TOKENIZER = ToyTokenizer(("<think>", "</think>", "hello", " world"))
TAGS = ("<think>", "</think>")


def reader(**settings) -> ReplyReader:
    settings = {"max_tokens": 1000, **settings}
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
    reading = reader(tags=TAGS, prompt="<|start|>assistant\n<think>\n")
    for token in TOKENIZER.encode("hm</think>yes"):
        reading.push(token)
    assert (reading.reasoning, reading.text) == ("hm", "yes")


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

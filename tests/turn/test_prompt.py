"""From history to ids: the splice keeps what was sampled, and never feeds what was not rendered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue import Conversation, Message, TemplateError
from segue.ledger import TokenLedger
from segue.testing import ToyTokenizer
from segue.turn.prompts.prompt import PromptBuilder
from segue.turn.prompts.spelling import append_reply, spell

TOKENIZER = ToyTokenizer()
HI = (Message.user("hi"),)
LETTERS = st.lists(
    st.sampled_from([*map(ord, "the "), *TOKENIZER.encode("the"), *"é".encode()]), max_size=8
)


def build_prompt(tokenizer, messages, held, template_kwargs):
    conversation = Conversation(None, messages, template_kwargs)
    prompt = PromptBuilder(tokenizer).build(conversation, held, checkpoints=True)
    assert 0 <= prompt.opening <= prompt.stable <= len(prompt.ledger.ids)
    return prompt.ledger


def after(reply: list[int]) -> TokenLedger:
    return append_reply(TOKENIZER, build_prompt(TOKENIZER, HI, TokenLedger(), {}), reply)


@given(LETTERS, st.booleans())
def test_sampled_ids_stand_where_the_history_spells_them(reply, ended):
    tokens = [*reply, TOKENIZER.end_id] if ended else reply
    held = after(tokens)
    assert held.seams[-1].ids == len(held.ids)
    messages = (*HI, Message.assistant(TOKENIZER.decode(reply)), Message.user("go on"))
    prompt = build_prompt(TOKENIZER, messages, held, {})
    assert prompt.ids[: len(held.ids)] == held.ids
    assert TOKENIZER.decode(prompt.ids) == prompt.text


@given(LETTERS, st.text("the é", max_size=6))
def test_what_is_fed_always_decodes_to_the_render(reply, other):
    messages = (*HI, Message.assistant(other), Message.user("go on"))
    prompt = build_prompt(TOKENIZER, messages, after(reply), {})
    assert TOKENIZER.decode(prompt.ids) == prompt.text
    assert prompt.text == TOKENIZER.render(
        [message.to_template() for message in messages],
        add_generation_prompt=True,
        template_kwargs={},
    )


def test_an_eos_that_the_template_does_not_write_is_left_behind():
    other_end = ToyTokenizer(words=("<|stop|>",))
    stop = other_end.encode("<|stop|>")[0]

    class Ends(ToyTokenizer):
        @property
        def eos_token_ids(self):
            return {stop}

    tokenizer = Ends(words=("<|stop|>",))
    first = build_prompt(tokenizer, HI, TokenLedger(), {})
    held = append_reply(tokenizer, first, [*b"ok", stop])
    prompt = build_prompt(tokenizer, (*HI, Message.assistant("ok"), *HI), held, {})
    assert prompt.ids[: len(held.ids) - 1] == held.ids[:-1]
    assert stop not in prompt.ids


class SpacePrefixing(ToyTokenizer):
    """Puts a space before whatever it encodes, as SentencePiece does."""

    def encode(self, text):
        return super().encode(" " + text)

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def test_a_join_that_would_invent_a_space_is_not_made():
    tokenizer = SpacePrefixing()
    held = append_reply(tokenizer, build_prompt(tokenizer, HI, TokenLedger(), {}), [*b"ok"])
    messages = (*HI, Message.assistant("ok"), *HI)
    prompt = build_prompt(tokenizer, messages, held, {})
    assert tokenizer.decode(prompt.ids) == prompt.text


def test_a_template_that_renders_nothing_is_refused():
    class Silent(ToyTokenizer):
        def render(self, messages, *, add_generation_prompt, template_kwargs):
            return ""

    with pytest.raises(TemplateError, match="to nothing"):
        build_prompt(Silent(), HI, TokenLedger(), {})


def test_ids_that_change_the_text_before_them_are_not_spelled():
    class Merging(ToyTokenizer):
        def decode(self, ids):
            return super().decode(ids).replace("ab", "X")

    assert spell(Merging(), b"a", b"b") is None
    assert spell(Merging(), b"a", b"c") == "c"

"""A reply that is continued: the ids of what was said so far.

*How it works.* The model has to see what it said as it said it. As a rule the cache still holds
that: then the prompt of the continuation is what is cached, and nothing is read again but its last
token. Where the cache holds something else (the session comes from a file without its KV cache, the
message was edited, the reply ended in a stop string that isn't part of it), the reply is written
out again, tags included, and encoded.

*Contents are text.* What is written out is marked as the replies of a history are (`contents.py`):
a message may have been edited, or come from elsewhere.

*The end.* A token that ended the reply is left out, or there would be nothing to continue. Half a
character at the end stays: the next tokens complete it.

*What does not work.* Where only the message is left, nobody knows the white space that the model
wrote around its tags: it gets what most models write.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from ..engine import Tokenizer
from ..ledger import MARK, TokenLedger
from ..messages import Message
from ..text.form import ReplyForm
from ..text.reader import ReplyReader
from .prompts.contents import REPLACEMENT, Controls
from .prompts.spelling import encode_settled, encode_whole


def begun_reply(
    tokenizer: Tokenizer,
    prompt: TokenLedger,
    said: Message,
    cached: TokenLedger,
    *,
    form: ReplyForm,
    reader: Callable[[], ReplyReader],
    allow_control_tokens: bool,
) -> tuple[int, ...]:
    """Return the ids of a reply so far.

    Args:
        tokenizer: The model's.
        prompt: The prompt that the reply answers, spliced with what is cached.
        said: The reply so far.
        cached: What the KV cache holds.
        form: How the reply is written.
        reader: Makes readers of the reply.
        allow_control_tokens: See `Conversation.allow_control_tokens`.
    """
    length = len(prompt.ids)
    if cached.ids[:length] == prompt.ids:
        ends = tokenizer.eos_token_ids
        ids = tuple(takewhile(lambda token: token not in ends, cached.ids[length:]))
        read = reader()
        read.resume(ids)
        read.close()
        if (read.text, read.reasoning or None) == (said.text, said.reasoning):
            return ids
    controls = None if allow_control_tokens else Controls.of(tokenizer)
    opened = reader().in_reasoning
    if controls is None:
        text = _written(said, form, opened=opened, mark=_without_mark)
    else:
        text = controls.settle(_written(said, form, opened=opened, mark=controls.mark_reply))
    ids_after = encode_settled(tokenizer, prompt.ids, text)
    return tuple(encode_whole(tokenizer, text) if ids_after is None else ids_after)


def _without_mark(text: str) -> str:
    return text.replace(MARK, REPLACEMENT)


def _written(said: Message, form: ReplyForm, *, opened: bool, mark: Callable[[str], str]) -> str:
    """Return the text of a reply as a model writes it, as far as the message shows that.

    Args:
        said: The message.
        form: How the reply is written.
        opened: True if the prompt has opened the reasoning.
        mark: Marks what the message says.
    """
    # Half a character was recorded as this: the model says the whole.
    reasoning, text = said.reasoning or "", said.text.rstrip(REPLACEMENT)
    if not said.text:
        reasoning = reasoning.rstrip(REPLACEMENT)
    reasoning, text = mark(reasoning), mark(text)
    if form.harmony:
        thought = f"<|channel|>analysis<|message|>{reasoning}" if reasoning else ""
        between = "<|end|><|start|>assistant" if thought and text else ""
        return thought + between + (f"<|channel|>final<|message|>{text}" if text else "")
    if form.wrapping is not None and form.wrapping.rendered and text:
        text = form.wrapping.start + text
    if form.tags is None or not (opened or reasoning):
        return text
    start, end = form.tags
    thought = ("" if opened else f"{start}\n") + reasoning
    # Without an answer it was cut in the middle of its thoughts.
    return f"{thought}\n{end}\n\n{text}" if text else thought

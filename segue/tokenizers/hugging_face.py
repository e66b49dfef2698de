"""Hugging Face's tokenizers, as a session needs them.

How it works: a tokenizer is wrapped by mlx-lm's ``TokenizerWrapper``, which finds the ids that end
a reply and the reasoning tags. On top of that, this module makes ids and text fit together, so that
what was cached as ids is what the next prompt says as text:

- Nothing is added by `encode`: the template writes its own BOS.
- Tokenizers of SentencePiece's kind put a space before each part between two special tokens, which
  no template wrote. It is taken away, except at the start of the text, where decoding drops it.
- Which tokens steer the model, and which of them end a reply, is found by rendering the chat
  template (`control.py`).
- What ids spell is our own for vocabularies of bytes, and the tokenizer's own for any other; the
  text of a reply as it comes is the same (`detokenizers.py`).
- A space at the start of a reply is part of its text only if the template writes replies as they
  are. If it writes that space itself, or trims it, the space is dropped.

What does not work:

- Tokenizers whose special tokens swallow white space beside them (Phi's). No ids spell what their
  templates render, and the publisher's ids are used as they are.
- Use without MLX: ``mlx_lm.tokenizer_utils`` imports it. An engine that is to run where MLX is not
  installed needs a wrapper of our own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer

from ..errors import MissingTemplateError, TemplateError
from .clock import FUNCTION, asks_for_date, with_clock
from .control import TemplateTokens, control_tokens, written_by
from .detokenizers import (
    ByteDetokenizer,
    ByteSpelling,
    ReplyDetokenizer,
    Streaming,
    WindowDetokenizer,
)

# What models write around their reasoning, besides what mlx-lm knows.
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
# gpt-oss writes replies of several messages, its reasoning into a channel of its own.
HARMONY_TOKENS = {"<|start|>", "<|channel|>", "<|message|>", "<|end|>"}
# Of these, the second ends a message that is followed by another one of the same reply.
HARMONY_ENDS, HARMONY_END = ("<|return|>", "<|call|>"), "<|end|>"
HARMONY_TAGS = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
# Text that joins with nothing after it, and takes the space that some tokenizers put before any
# text that they encode.
ANCHOR = "\n"


class HuggingFaceTokenizer:
    """A Hugging Face or mlx-lm tokenizer as a `segue.engine.Tokenizer`.

    Args:
        tokenizer: A tokenizer as `mlx_lm.load` returns it, or a plain Hugging Face one.
        name: What messages call the tokenizer; by default its own name.

    Raises:
        MissingTemplateError: if the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, *, name: str | None = None) -> None:
        wrapped = (
            tokenizer if isinstance(tokenizer, TokenizerWrapper) else TokenizerWrapper(tokenizer)
        )
        self.name = name or str(getattr(wrapped, "name_or_path", "") or "this tokenizer")
        self.wrapped = wrapped
        if not wrapped.has_chat_template:
            raise MissingTemplateError(
                f"The tokenizer of {self.name} has no chat template, so it can't hold a "
                "conversation (it may be that of a base model).",
                remedy="Use an instruct or chat model, or set tokenizer.chat_template yourself.",
            )

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as ``tokenizer.json`` has it; ``None`` if it isn't one of that library."""
        backend = getattr(self.wrapped, "backend_tokenizer", None)
        if backend is None:
            return None
        backend = Tokenizer.from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
        return str(backend.to_str())

    @property
    def eos_token_ids(self) -> AbstractSet[int]:
        """The ids that end a reply: the model's own, and those that end turns in its template."""
        ids = frozenset(self.wrapped.eos_token_ids)
        if self._harmony:
            ends = {self.vocabulary[end] for end in HARMONY_ENDS if end in self.vocabulary}
            # What ends a message in the history does not end a reply of several.
            return (ids | ends) - {self.vocabulary[HARMONY_END]}
        return ids | self._ends_of_turns

    @cached_property
    def _ends_of_turns(self) -> AbstractSet[int]:
        return self._template_tokens.ends(set(self.wrapped.eos_token_ids))

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """See `segue.engine.ControlTokens`: special tokens, and those that the template writes."""
        written = [*self._sources, *written_by(self._render_plain), *self._reply_texts]
        return control_tokens(self._added_tokens, written)

    @property
    def _sources(self) -> list[str]:
        """The source of each chat template, where it has one."""
        template = getattr(self.wrapped, "chat_template", None)
        named = template.values() if isinstance(template, Mapping) else [template]
        return [source for source in named if isinstance(source, str)]

    @cached_property
    def reply_tokens(self) -> AbstractSet[str]:
        """See `segue.engine.ControlTokens`."""
        roles = getattr(self.wrapped, "special_tokens_map", None) or {}
        written = {token for token in roles.values() if isinstance(token, str)}
        sources = self._sources
        written |= {t for t in self.control_tokens if any(t in source for source in sources)}
        return self._template_tokens.in_replies(self.eos_token_ids, written)

    @property
    def _reply_texts(self) -> list[str]:
        """What may be around a part of a reply."""
        found = [*(self.reasoning_tags or ())]
        found += [self.wrapped.tool_call_start, self.wrapped.tool_call_end]
        return [text for text in found if text]

    @cached_property
    def _template_tokens(self) -> TemplateTokens:
        return TemplateTokens(self.control_tokens, self._render_plain, self._reply_texts)

    def _render_plain(
        self, messages: Sequence[Mapping[str, Any]], prompt: bool, kwargs: Mapping[str, Any]
    ) -> str:
        return self.render(messages, add_generation_prompt=prompt, template_kwargs=kwargs)

    @property
    def _harmony(self) -> bool:
        """True if replies are messages in channels."""
        return self.vocabulary.keys() >= HARMONY_TOKENS

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """See `segue.engine.Tokenizer.vocabulary`."""
        return dict(self.wrapped.get_vocab())

    @cached_property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """See `segue.engine.Tokenizer.reasoning_tags`; mlx-lm's own, or found by the vocabulary."""
        start, end = self.wrapped.think_start, self.wrapped.think_end
        if start and end:
            return start, end
        template = str(getattr(self.wrapped, "chat_template", None) or "")
        for start, end in REASONING_TAGS:
            known = start in self.vocabulary and end in self.vocabulary
            if known or (start in template and end in template):
                return start, end
        return HARMONY_TAGS if self._harmony else None

    @property
    def writes_date(self) -> bool:
        """See `segue.engine.WritesDate`."""
        return asks_for_date(self.wrapped)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """See `segue.engine.Tokenizer.render`."""
        try:
            if callable(template_kwargs.get(FUNCTION)):
                template_kwargs = with_clock(self.wrapped, template_kwargs)
            text = self.wrapped.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **template_kwargs,
            )
        # A template is a program of the model's publisher: it may fail with any exception.
        except Exception as error:
            raise TemplateError(
                f"The chat template of {self.name} failed on this conversation ({error}).",
                remedy="Check that it takes these roles in this order, and these template_kwargs.",
            ) from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """See `segue.engine.Tokenizer.encode`."""
        if not self._spaces_parts:
            return self._encode(text)
        first, *rest = self._special.split(text)
        ids = self._encode(first)
        for part in rest:
            ids += self._encode_inside(part) if part not in self._added else [self._added[part]]
        return ids

    def _encode(self, text: str) -> list[int]:
        return list(self.wrapped.encode(text, add_special_tokens=False))

    def _encode_inside(self, text: str) -> list[int]:
        """Return the ids of text that comes after something: a line break here, cut off again."""
        anchor, ids = self._anchor, self._encode(ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._encode(text)

    @cached_property
    def _anchor(self) -> list[int]:
        return self._encode(ANCHOR)

    @cached_property
    def _added_tokens(self) -> Mapping[int, Any]:
        # Tokenizers that are not Hugging Face's own have none.
        return dict(getattr(self.wrapped, "added_tokens_decoder", {}))

    @cached_property
    def _added(self) -> Mapping[str, int]:
        return {token.content: index for index, token in self._added_tokens.items()}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Matches the tokens that are never cut nor joined; the longest of several."""
        longest_first = sorted(self._added, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def _spaces_parts(self) -> bool:
        """True if a space is put after special tokens, and they swallow none beside them."""
        tokens = self._added_tokens.values()
        if not tokens or any(token.lstrip or token.rstrip for token in tokens):
            return False
        special = next(iter(self._added))
        return self.decode(self._encode(special + "a")) == special + " a"

    def decode(self, ids: Sequence[int]) -> str:
        """See `segue.engine.Tokenizer.decode`."""
        return self._decode(ids) if self._bytes is None else self._bytes.decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.wrapped.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def _bytes(self) -> ByteSpelling | None:
        """What ids spell, if the vocabulary is byte-level, whatever its decoder is."""
        backend = getattr(self.wrapped, "backend_tokenizer", None)
        if backend is None:  # a tokenizer in Python
            return None
        decoder = _kinds(backend.decoder)
        if "ByteLevel" in _kinds(backend.pre_tokenizer) | _kinds(backend.normalizer):
            byte_level = True
        elif "ByteLevel" in decoder:
            byte_level = decoder <= {"ByteLevel", "Sequence", "Fuse"}
        else:  # a space and a line break as either kind of vocabulary has them
            known = self.vocabulary
            byte_level = "\u0120" in known and "\u010a" in known and "\u2581" not in known
        if not byte_level:
            return None
        return ByteSpelling(
            backend.id_to_token,
            {index: token.content for index, token in self._added_tokens.items()},
        )

    def detokenizer(self) -> ReplyDetokenizer:
        """See `segue.engine.Tokenizer.detokenizer`."""
        streaming: Streaming = (
            WindowDetokenizer(self._decode, self._before_reply)
            if self._bytes is None
            else ByteDetokenizer(self._bytes)
        )
        return ReplyDetokenizer(streaming, drop_space=self._drops_space)

    @cached_property
    def _before_reply(self) -> list[int]:
        """Ids to decode before a reply: of a letter, as a line break may be a mere byte."""
        return self._encode("a")

    @cached_property
    def _drops_space(self) -> bool:
        """True if a space at the start of a reply is not part of its text."""
        attempts: list[dict[str, Any]] = [{}, {"tools": []}]  # some fail without tools
        for template_kwargs in attempts:
            try:
                bare, spaced = (
                    self._render_probe([reply], template_kwargs) for reply in ("x", " x")
                )
                prompt = self._render_probe([], template_kwargs)
            except TemplateError:
                continue
            return bare == spaced or bare.startswith(prompt + " x")
        return True

    def _render_probe(self, replies: list[str], template_kwargs: Mapping[str, Any]) -> str:
        """Render a question and some replies, with questions between them."""
        contents = ["q", *(content for reply in replies for content in (reply, "q"))]
        return self.render(
            [
                {"role": ("user", "assistant")[index % 2], "content": content}
                for index, content in enumerate(contents)
            ],
            add_generation_prompt=True,
            template_kwargs=template_kwargs,
        )


def _kinds(part: Any) -> set[str]:
    """Return the types of a decoder, pre-tokenizer or normalizer, and of its parts."""
    found: set[str] = set()
    waiting = [] if part is None else [json.loads(part.__getstate__())]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            found |= {entry["type"]} if isinstance(entry.get("type"), str) else set()
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry
    return found

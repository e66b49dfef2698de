"""mlx-lm's tokenizers, as a session needs them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property, partial
from typing import Any

from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    StreamingDetokenizer,
    TokenizerWrapper,
    _is_bpe_decoder,
    _is_spm_decoder,
    _is_spm_decoder_no_space,
)

from ..errors import MissingTemplateError, TemplateError

# What models write around their reasoning, beside what mlx-lm knows.
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
# gpt-oss writes its reasoning into a channel of its own.
HARMONY_TOKENS = {"<|start|>", "<|channel|>", "<|message|>", "<|end|>"}
HARMONY_TAGS = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
# Text that joins with nothing that follows it, and takes the space that some tokenizers put in
# front of whatever they encode.
ANCHOR = "\n"


class MlxTokenizer:
    """A Hugging Face or mlx-lm tokenizer behind Segue's `Tokenizer` protocol.

    Args:
        tokenizer: A tokenizer as `mlx_lm.load` returns it, or a plain Hugging Face one.
        name: What messages call it; by default the name it carries itself.

    Raises:
        MissingTemplateError: It has no chat template.
    """

    def __init__(self, tokenizer: Any, *, name: str | None = None) -> None:
        wrapped = (
            tokenizer
            if isinstance(tokenizer, TokenizerWrapper)
            else TokenizerWrapper(tokenizer, _detokenizer_class(tokenizer))
        )
        self.name = name or str(getattr(wrapped, "name_or_path", "") or "this tokenizer")
        self.wrapped = wrapped
        if not wrapped.has_chat_template:
            raise MissingTemplateError(
                f"The tokenizer of {self.name} has no chat template, so it can't hold a "
                "conversation (it may belong to a base model).",
                remedy="Use an instruct or chat model, or set tokenizer.chat_template yourself.",
            )

    @property
    def eos_token_ids(self) -> AbstractSet[int]:
        """The ids that end a reply."""
        ids: AbstractSet[int] = self.wrapped.eos_token_ids
        return ids

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
        return HARMONY_TAGS if self.vocabulary.keys() >= HARMONY_TOKENS else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        """See `segue.engine.Tokenizer.render`."""
        try:
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
        """See `segue.engine.Tokenizer.encode`.

        Some tokenizers of SentencePiece's kind put a space at the front of every part between two
        special tokens, which no template wrote: that is taken away, but at the front of the text,
        where decoding drops it.
        """
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
        """The ids of text that has something before it: a line break here, cut off again."""
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
        """Finds the tokens that are never cut nor joined; the longest of several."""
        longest_first = sorted(self._added, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def _spaces_parts(self) -> bool:
        """Whether a space is put behind special tokens, and nothing is swallowed beside them.

        Where they swallow white space, as Phi's do, the publisher's ids spell no render anyway.
        """
        tokens = self._added_tokens.values()
        if not tokens or any(token.lstrip or token.rstrip for token in tokens):
            return False
        special = next(iter(self._added))
        return self.decode(self._encode(special + "a")) == special + " a"

    def decode(self, ids: Sequence[int]) -> str:
        """See `segue.engine.Tokenizer.decode`."""
        return str(
            self.wrapped.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def detokenizer(self) -> MlxDetokenizer:
        """See `segue.engine.Tokenizer.detokenizer`."""
        return MlxDetokenizer(self.wrapped.detokenizer, drop_space=self._drops_space)

    @cached_property
    def _drops_space(self) -> bool:
        """Whether a space at the front of a reply is none of its text.

        So it is where the template writes that space itself, or trims it away. Where the template
        writes replies as they are, the space must stay, or the next prompt would lack it.
        """
        attempts: list[dict[str, Any]] = [{}, {"tools": []}]  # some fail without tools
        for template_kwargs in attempts:
            try:
                bare, spaced = (self._render_probe([said], template_kwargs) for said in ("x", " x"))
                prompt = self._render_probe([], template_kwargs)
            except TemplateError:
                continue
            return bare == spaced or bare.startswith(prompt + " x")
        return True

    def _render_probe(self, replies: list[str], template_kwargs: Mapping[str, Any]) -> str:
        """A question and what is said then."""
        said = ["q", *(part for reply in replies for part in (reply, "q"))]
        return self.render(
            [
                {"role": ("user", "assistant")[index % 2], "content": content}
                for index, content in enumerate(said)
            ],
            add_generation_prompt=True,
            template_kwargs=template_kwargs,
        )


def _detokenizer_class(tokenizer: Any) -> Any:
    """The streaming detokenizer for a plain Hugging Face tokenizer, chosen as mlx-lm's loader does.

    The naive one, which fits any, drops spaces at the front of lines with SentencePiece decoders.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    if _is_spm_decoder(decoder):
        return SPMStreamingDetokenizer
    if _is_spm_decoder_no_space(decoder):
        return partial(SPMStreamingDetokenizer, trim_space=False)
    return BPEStreamingDetokenizer if _is_bpe_decoder(decoder) else NaiveStreamingDetokenizer


class MlxDetokenizer:
    """One of mlx-lm's streaming detokenizers behind Segue's `Detokenizer` protocol.

    Args:
        streaming: It, fresh.
        drop_space: Whether a space at the very front is left out; mlx-lm's own always do that, or
            never, by the tokenizer's kind.
    """

    def __init__(self, streaming: StreamingDetokenizer, *, drop_space: bool = True) -> None:
        self._streaming = streaming
        self._drop_space = False
        if isinstance(streaming, (BPEStreamingDetokenizer, SPMStreamingDetokenizer)):
            # They trim what stands at the front: now nothing does.
            streaming.text, streaming.offset = ANCHOR, len(ANCHOR)
            self._drop_space = drop_space

    def add(self, token: int) -> str:
        """See `segue.engine.Detokenizer.add`."""
        self._streaming.add_token(token)
        return self._new_text()

    def finish(self) -> str:
        """See `segue.engine.Detokenizer.finish`."""
        self._streaming.finalize()
        return self._new_text()

    def _new_text(self) -> str:
        text = str(self._streaming.last_segment)
        if text and self._drop_space:
            self._drop_space = False
            text = text.removeprefix(" ")
        return text

"""Hugging Face transformers with a kept `DynamicCache`, on PyTorch's CPU build.

The whole history is rendered and encoded each turn, as its documentation shows, and `generate`
feeds what is longer than the cache. It compares nothing: so the cache is cropped here to the ids
that it has in common with the prompt, and where it can't be cropped, a new one begins.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.peers.protocol import LoadingPeer, Measure, Messages, rate, serve


class Clock:
    """A streamer that notes when tokens come; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


class TransformersPeer(LoadingPeer):
    """A model, a cache, and the ids in it."""

    def begin(self, workload: dict[str, Any], paths: dict[str, str]) -> None:
        super().begin(workload, paths)
        self._new_cache()

    def load(self, place: str) -> Any:
        self._tokenizer = AutoTokenizer.from_pretrained(place)
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)

    def let_go(self) -> None:
        self._cache = None

    def _new_cache(self) -> None:
        self._cache: Any = DynamicCache(config=self._model.config)
        self._held: list[int] = []

    def take(self, step: dict[str, Any], messages: Messages) -> Measure:
        started = perf_counter()
        inputs = self._tokenizer.apply_chat_template(
            list(messages),
            tools=self._workload["tools"] or None,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        prompt = inputs["input_ids"][0].tolist()
        anew = self._crop_to(prompt)
        held = self._cache.get_seq_length()
        temperature = self._workload["temperature"]
        torch.manual_seed(step["seed"])
        clock = Clock()
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        output = self._model.generate(
            **inputs,
            **(sampling if temperature else {"do_sample": False}),
            max_new_tokens=step["cut"] or step["max_tokens"],
            past_key_values=self._cache,
            streamer=clock,
        )
        whole = output[0].tolist()
        # The last token was not fed.
        self._held = whole[: self._cache.get_seq_length()]
        tokens = whole[len(prompt) :]
        first, last = clock.times[1], clock.times[-1]
        return Measure(
            self._tokenizer.decode(tokens, skip_special_tokens=True),
            len(prompt) - held,
            len(prompt),
            len(tokens),
            first - started,
            rate(len(tokens), first, last),
            tokens,
            instead="begins anew with the whole history" if anew else None,
        )

    def _crop_to(self, prompt: list[int]) -> bool:
        """Crop the cache to what it shares with a prompt; whether it had to begin anew."""
        same = 0
        for held, asked in zip(self._held, prompt[:-1], strict=False):
            if held != asked:
                break
            same += 1
        if same == len(self._held):
            return False
        try:
            self._cache.crop(same - len(self._held))
        # Recurrent layers and wrapped windows refuse in words of their own.
        except (RuntimeError, ValueError, NotImplementedError, AttributeError):
            self._new_cache()
            return True
        return False

    def save(self, path: str) -> dict[str, Any]:
        return {"instead": "its cache is not saved: the new process reads the whole history"}


if __name__ == "__main__":
    serve(TransformersPeer())

"""GenerationConfig's fields as command-line options."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from ..config import GenerationConfig

# Fields without an option: code can't be passed on a command line, and a chat does not show
# log probabilities.
LEFT_OUT = ("logits_processors", "logprobs")

HELP = {
    "max_tokens": "The most tokens a reply may have.",
    "temperature": "0 takes the likeliest token; higher samples more freely.",
    "top_p": "Sample from the likeliest tokens that hold this probability together.",
    "min_p": "Drop tokens below this share of the likeliest one's probability.",
    "min_tokens_to_keep": "Tokens that --min-p always leaves.",
    "top_k": "Sample from this many of the likeliest tokens; 0 for all.",
    "xtc_probability": "How often the likeliest candidates are excluded.",
    "xtc_threshold": "The probability above which they are.",
    "repetition_penalty": "Divide the logits of recent tokens by this.",
    "repetition_context_size": "How many tokens count as recent for it.",
    "presence_penalty": "Subtract this from the logits of recent tokens.",
    "presence_context_size": "How many tokens count as recent for it.",
    "frequency_penalty": "Subtract this for each recent appearance of a token.",
    "frequency_context_size": "How many tokens count as recent for it.",
    "logit_bias": "Add VALUE to a token's logit; may be repeated.",
    "stop": "End the reply before this string; may be repeated.",
    "seed": "Make sampling repeatable.",
    "prefill_step_size": "Prompt tokens fed at a time; Ctrl-C waits for at most so many.",
    "kv_bits": "Quantize the KV cache to so many bits.",
    "kv_group_size": "Values that share a scale in a quantized KV cache.",
    "quantized_kv_start": "Tokens in the KV cache before it is quantized.",
    "max_kv_size": "Keep at most so many tokens in the KV cache.",
    "max_marks": "Places that a cache which can't be trimmed can come back to.",
    "max_mark_bytes": "The most memory that those may take.",
}

# What shapes the KV cache, and how it is filled.
CACHE_SETTINGS = (
    "prefill_step_size",
    "kv_bits",
    "kv_group_size",
    "quantized_kv_start",
    "max_kv_size",
)

# A person waits for Ctrl-C to act, and a CPU reads some hundred tokens a second.
CHAT_DEFAULTS = {"max_tokens": 1024, "prefill_step_size": 512}


Command = Callable[..., Any]


def generation_options(*names: str) -> Callable[[Command], Command]:
    """Give a command one option for each field, and call it with the ``generation`` they make.

    Args:
        names: The fields; all that have an option if none is named.
    """
    wanted = names or tuple(HELP)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_generation(**values: Any) -> Any:
            given = {name: values.pop(name) for name in wanted}
            if "logit_bias" in given:
                given["logit_bias"] = dict(_bias(entry) for entry in given["logit_bias"])
            settings = {name: value for name, value in given.items() if value is not None}
            return command(**values, generation=GenerationConfig(**settings))

        decorated: Command = with_generation
        for field in reversed(dataclasses.fields(GenerationConfig)):
            if field.name in wanted:
                decorated = _option(field)(decorated)
        return decorated

    return decorate


def given_settings(context: click.Context) -> frozenset[str]:
    """The fields that a command was given, and did not take from its defaults."""
    return frozenset(name for name in HELP if not is_default(context, name))


def is_default(context: click.Context, parameter: str) -> bool:
    """Whether nobody named a parameter of a command."""
    source = context.get_parameter_source(parameter)
    return source in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def _option(field: dataclasses.Field[Any]) -> Callable[..., Any]:
    repeated = field.name in ("logit_bias", "stop")
    default = CHAT_DEFAULTS.get(field.name, None if repeated else field.default)
    kind = int if "int" in str(field.type) else float
    return click.option(
        "--" + field.name.replace("_", "-"),
        field.name,
        type=str if repeated else kind,
        metavar={"logit_bias": "TOKEN=VALUE", "stop": "TEXT"}.get(field.name),
        multiple=repeated,
        default=default,
        show_default=default is not None,
        help=HELP[field.name],
    )


def _bias(entry: str) -> tuple[int, float]:
    token, _, value = entry.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise click.BadParameter(
            f"{entry!r} is not of the form TOKEN=VALUE, such as 42=-5", param_hint="--logit-bias"
        ) from None

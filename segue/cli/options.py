"""Fields of settings classes as command-line options."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from ..config import GenerationConfig
from ..errors import ConfigurationError
from .groups import GroupedOption

# Fields without an option: code can't be passed on a command line, and a chat does not show
# log probabilities.
LEFT_OUT = ("logits_processors", "logprobs")

REPLIES, SAMPLING, PENALTIES = "Replies", "Sampling", "Penalties"
KV_CACHE, DRAFTS = "KV cache", "Drafts"


@dataclass(frozen=True, slots=True)
class Setting:
    """A field's entry in the help."""

    group: str
    help: str
    short: str = ""
    """The option's short form, if it has one."""


# In the order of the help.
OPTIONS = {
    "max_tokens": Setting(REPLIES, "The most tokens that a reply may have."),
    "stop": Setting(REPLIES, "End the reply where the answer comes to TEXT; may be repeated."),
    "stop_in_reasoning": Setting(REPLIES, "Let --stop end the reply in the reasoning, too."),
    "temperature": Setting(
        SAMPLING, "0 always takes the likeliest token; higher values vary more.", "-t"
    ),
    "top_p": Setting(
        SAMPLING, "Sample from the likeliest tokens whose probabilities add up to NUMBER."
    ),
    "min_p": Setting(SAMPLING, "Drop tokens less likely than NUMBER times the likeliest one."),
    "min_tokens_to_keep": Setting(SAMPLING, "The number of tokens that --min-p never drops."),
    "top_k": Setting(SAMPLING, "Sample from the N likeliest tokens; 0 for all."),
    "xtc_probability": Setting(
        SAMPLING, "How often to exclude the likeliest tokens (XTC), from 0 to 1."
    ),
    "xtc_threshold": Setting(
        SAMPLING, "XTC excludes the tokens above this probability, except the least likely one."
    ),
    "seed": Setting(SAMPLING, "Make sampling repeatable: the same prompt gets the same reply."),
    "repetition_penalty": Setting(PENALTIES, "Divide the logits of recent tokens by NUMBER."),
    "repetition_context_size": Setting(
        PENALTIES, "The last N tokens count as recent for the repetition penalty."
    ),
    "presence_penalty": Setting(PENALTIES, "Subtract NUMBER from the logits of recent tokens."),
    "presence_context_size": Setting(
        PENALTIES, "The last N tokens count as recent for the presence penalty."
    ),
    "frequency_penalty": Setting(
        PENALTIES, "Subtract NUMBER from a logit for each recent appearance of the token."
    ),
    "frequency_context_size": Setting(
        PENALTIES, "The last N tokens count as recent for the frequency penalty."
    ),
    "logit_bias": Setting(PENALTIES, "Add VALUE to the logit of a token id; may be repeated."),
    "prefill_step_size": Setting(
        KV_CACHE, "Read N prompt tokens at a time; Ctrl-C waits for one such step."
    ),
    "kv_bits": Setting(KV_CACHE, "Quantize the KV cache to N bits: 2, 3, 4, 5, 6 or 8."),
    "kv_group_size": Setting(
        KV_CACHE, "How many values share a scale in a quantized KV cache: 32, 64 or 128."
    ),
    "quantized_kv_start": Setting(KV_CACHE, "Quantize the KV cache from N tokens on."),
    "max_kv_size": Setting(
        KV_CACHE, "Limit the KV cache to N tokens: the system message and the latest ones."
    ),
    "max_checkpoints": Setting(
        KV_CACHE, "The most checkpoints to rewind to, in a KV cache that can't be trimmed."
    ),
    "max_checkpoint_bytes": Setting(
        KV_CACHE, "The most memory that checkpoints may take, in bytes."
    ),
    "num_draft_tokens": Setting(
        DRAFTS, "The most tokens that --draft proposes at a time; 0 for no drafts."
    ),
}

# What a chat takes for a setting that is one or the other.
ON_OR_OFF = {"on": True, "true": True, "off": False, "false": False}

# What may be done about a full context; see ChatSession.
OVERFLOWS = ("error", "drop-oldest")

# Fields that decide what a KV cache holds. A cache made with one value serves no other.
CACHE_FORM = ("kv_bits", "kv_group_size", "quantized_kv_start", "max_kv_size")

METAVARS = {"logit_bias": "TOKEN=VALUE", "stop": "TEXT"}

# A person waits for Ctrl-C to act, and a CPU reads some hundred tokens a second.
CHAT_DEFAULTS = {"max_tokens": 1024, "prefill_step_size": 512}


Command = Callable[..., Any]


def settings_options(
    only: Collection[str] = tuple(OPTIONS), **classes: type
) -> Callable[[Command], Command]:
    """Give a command an option for each field of its settings.

    Args:
        only: The fields that get an option.
        classes: Dataclasses, by the name under which the command takes an instance. They share no
            field's name.
    """
    fields = {
        field.name: (parameter, field)
        for parameter, settings in classes.items()
        for field in dataclasses.fields(settings)
    }
    names = [name for name in OPTIONS if name in only]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_settings(**values: Any) -> Any:
            settings: dict[str, dict[str, Any]] = {parameter: {} for parameter in classes}
            for name in names:
                settings[fields[name][0]][name] = values.pop(name)
            made = {parameter: classes[parameter](**given) for parameter, given in settings.items()}
            return command(**values, **made)

        decorated: Command = with_settings
        for name in reversed(names):
            decorated = _option(fields[name][1])(decorated)
        return decorated

    return decorate


def option_name(field: str) -> str:
    """The option of a field: ``"--kv-bits"``."""
    return "--" + field.replace("_", "-")


def reply_settings() -> list[str]:
    """The settings of replies that a chat can change, by the names of their options."""
    fields = {field.name for field in dataclasses.fields(GenerationConfig)}
    # A chat has no form for numbers by token.
    names = [name for name in OPTIONS if name in fields and name != "logit_bias"]
    return [option_name(name).removeprefix("--") for name in names]


def parsed_setting(name: str, value: str) -> tuple[str, Any]:
    """Read a setting of replies as a chat has it.

    Examples:
        >>> parsed_setting("top-k", "40")
        ('top_k', 40)

    Args:
        name: One of `reply_settings`.
        value: The value; ``"off"`` for the default, ``"on"`` or ``"off"`` for what is either.

    Returns:
        The field of `GenerationConfig`, and its value.

    Raises:
        ConfigurationError: if there is no such setting, or it can't have that value.
    """
    if name not in reply_settings():
        near = difflib.get_close_matches(name, reply_settings(), n=1)
        raise ConfigurationError(
            f"Replies have no setting {name!r}.",
            remedy=f"Did you mean {near[0]}?" if near else "/set lists them.",
        )
    field = GenerationConfig.__dataclass_fields__[name.replace("-", "_")]
    if isinstance(field.default, bool):
        try:
            return field.name, ON_OR_OFF[value.lower()]
        except KeyError:
            raise ConfigurationError(
                f"The setting {name} must be on or off, not {value!r}.", remedy=f"/set {name} on"
            ) from None
    if value == "off":
        return field.name, field.default
    if field.name == "stop":
        return field.name, (value,)
    kind = int if _is_whole(field) else float
    try:
        return field.name, kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigurationError(
            f"The setting {name} must be {wanted}, not {value!r}.", remedy=f"/set {name} NUMBER"
        ) from None


def shown_value(value: object) -> object:
    """Return a setting's value as a chat shows it, and takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if value in (None, ()) else value


def _is_whole(field: dataclasses.Field[Any]) -> bool:
    return "int" in str(field.type)


def given_settings(context: click.Context) -> frozenset[str]:
    """The fields whose options were given, and not taken from their defaults."""
    return frozenset(name for name in OPTIONS if not is_default(context, name))


def is_default(context: click.Context, parameter: str) -> bool:
    """True if a parameter was not given on the command line."""
    source = context.get_parameter_source(parameter)
    return source in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def _option(field: dataclasses.Field[Any]) -> Callable[[Command], Command]:
    setting = OPTIONS[field.name]
    long = option_name(field.name)
    if isinstance(field.default, bool):
        long += "/" + option_name(f"no_{field.name}")
    names = [setting.short, long, field.name]
    if field.name == "logit_bias":
        form: dict[str, Any] = {"type": str, "multiple": True, "callback": _biases}
    elif field.name == "stop":
        form = {"type": str, "multiple": True}
    elif isinstance(field.default, bool):
        form = {"default": field.default}
    else:
        default = CHAT_DEFAULTS.get(field.name, field.default)
        whole = _is_whole(field)
        form = {"type": int if whole else float, "metavar": "N" if whole else "NUMBER"}
        form |= {"default": default, "show_default": default is not None}
    form = {"metavar": METAVARS.get(field.name), **form}
    return click.option(
        *filter(None, names), cls=GroupedOption, group=setting.group, help=setting.help, **form
    )


def _biases(
    context: click.Context, parameter: click.Parameter, entries: tuple[str, ...]
) -> dict[int, float]:
    return dict(map(_bias, entries))


def _bias(entry: str) -> tuple[int, float]:
    token, _, value = entry.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise click.BadParameter(
            f"must be TOKEN=VALUE, such as 42=-5, not {entry!r}.", param_hint="--logit-bias"
        ) from None

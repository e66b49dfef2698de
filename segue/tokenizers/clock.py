"""The date that chat templates write, from a clock of ours.

Templates ask for the date with ``strftime_now("%Y-%m-%d")``, which transformers answers with the
time of the call. A conversation that renders alike on any day needs a clock that stands still.

What does not work: passing another function of that name. transformers makes everything that a
template gets plain data, so that a function becomes text. So the template gets a macro of that name
in front, which looks each directive up in a table.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

FUNCTION = "strftime_now"
TABLE = "segue_clock"
# The line break at its end is the macro's, not the template's: `trim_blocks` is on.
MACRO = f"""\
{{%- macro {FUNCTION}(format) -%}}
{{%- for part in format.split('%%') -%}}
    {{%- set ns = namespace(text=part) -%}}
    {{%- for directive, text in {TABLE}.items() -%}}
        {{%- set ns.text = ns.text.replace(directive, text) -%}}
    {{%- endfor -%}}
    {{{{- '' if loop.first else '%' -}}}}
    {{{{- ns.text -}}}}
{{%- endfor -%}}
{{%- endmacro %}}
"""
DIRECTIVE = re.compile(r"%[-_0^#:]*\d*[EO]?[a-zA-Z]")


def asks_for_date(tokenizer: Any) -> bool:
    """Return True if a tokenizer's chat template asks for the date."""
    custom = getattr(tokenizer, "_chat_template", None)
    if (getattr(custom, "__module__", None) or "").startswith("mlx_lm"):
        return False  # a program of mlx-lm's, not a template
    return FUNCTION in str(getattr(tokenizer, "chat_template", None) or "")


def with_clock(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with which a chat template writes the date of a clock.

    Args:
        tokenizer: A Hugging Face tokenizer, in mlx-lm's wrapper or not.
        template_kwargs: Arguments of the template, the clock among them: a function that takes a
            format as ``strftime`` does.
    """
    kwargs = dict(template_kwargs)
    clock: Callable[[str], str] = kwargs.pop(FUNCTION)
    template = tokenizer.get_chat_template(kwargs.get("chat_template"), kwargs.get("tools"))
    kwargs["chat_template"] = MACRO + template
    kwargs[TABLE] = {
        directive: text
        for directive in {*DIRECTIVE.findall(template), *("%" + x for x in string.ascii_letters)}
        # Platforms give back what they don't know, or refuse it.
        if "%" not in (text := _written(clock, directive))
    }
    return kwargs


def _written(clock: Callable[[str], str], directive: str) -> str:
    try:
        return clock(directive)
    except ValueError:
        return directive

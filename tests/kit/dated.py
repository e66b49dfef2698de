"""A tokenizer whose template writes the date, and everything else in a known order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from segue.testing import ToyTokenizer

LONG_AGO = datetime(2024, 2, 29, 23, 59, 58, 123456)


class Dated(ToyTokenizer):
    """Someone else's tokenizer: writes the date first, by the clock that it is given.

    Then come arguments of the template, instructions and messages.
    """

    writes_date = True

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        template_kwargs: Mapping[str, Any],
    ) -> str:
        kwargs = dict(template_kwargs)
        now = kwargs.pop("strftime_now", None) or (lambda form: datetime.now().strftime(form))
        rest = super().render(
            messages, add_generation_prompt=add_generation_prompt, template_kwargs=kwargs
        )
        return f"{now('%Y-%m-%d %f')}\n{rest}"

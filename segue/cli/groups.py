"""Options in groups, as ``--help`` lists them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

UNGROUPED = "Other"


class GroupedOption(click.Option):
    """An option that belongs to a group.

    Args:
        group: The heading of the group in the help.
    """

    def __init__(self, *args: Any, group: str = UNGROUPED, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help: ``--x / --no-x`` as ``--[no-]x``, so that it fits."""
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return record[0].replace("--", "--[no-]", 1).partition(" / ")[0], record[1]


class GroupedCommand(click.Command):
    """A command whose help lists options by group, groups in the order of their first option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, their columns aligned with one another."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                groups.setdefault(getattr(parameter, "group", UNGROUPED), []).append(record)
        width = max(len(option) for group in groups.values() for option, _ in group)
        for name, group in groups.items():
            with formatter.section(name):
                formatter.write_dl([(option.ljust(width), text) for option, text in group])


class FilePath(click.Path):
    """A file's path. ``~`` is expanded, which shells leave alone in ``--option=~/file``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        return Path(os.fsdecode(super().convert(os.path.expanduser(value), param, ctx)))

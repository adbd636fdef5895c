"""How options that take no value are shown by --help: without one."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _plain(command: Any, ctx: Any) -> None:
    """Only before help is shown: a metavar would stand in messages, too."""
    for param in command.get_params(ctx):
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""


class Command(TyperCommand):
    """One command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The same as ever, with flags as flags."""
        _plain(self, ctx)
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """Several commands under one name."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The same as ever, with flags as flags."""
        _plain(self, ctx)
        super().format_help(ctx, formatter)

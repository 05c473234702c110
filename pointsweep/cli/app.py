"""The command `pointsweep`: all commands under one name, with completion for shells.

A command's module is imported when it is asked for, so that help and completion are quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
import typer.core
import typer.main

from pointsweep.cli.command import HELP_OPTIONS, Version, run
from pointsweep.errors import unknown
from pointsweep.utils.cli_exit import exit_code

# The command's name, the module whose `main` it is, and what the overview says of it.
COMMANDS: dict[str, tuple[str, str]] = {
    "new": ("pointsweep.cli.new", "write a first sweep file that runs"),
    "run": ("pointsweep.cli.run", "turn sweep files into their tables"),
    "plan": ("pointsweep.cli.plan", "check sweep files and print what would run"),
    "ls": ("pointsweep.cli.ls", "list the sweeps of a store"),
    "status": (
        "pointsweep.cli.status",
        "print what of a sweep is done, failed and running",
    ),
    "tables": ("pointsweep.cli.tables", "print a sweep's table from what is finished"),
    "report": ("pointsweep.cli.report", "write a sweep's report, one HTML file"),
    "serve": ("pointsweep.cli.serve", "show sweeps in the browser while they run"),
    "replay": ("pointsweep.cli.replay", "train a cell's trials again and compare"),
    "verify": ("pointsweep.cli.verify", "check a bundle or a store"),
    "data": ("pointsweep.cli.data", "check the data sets"),
    "doctor": ("pointsweep.cli.doctor", "look at every node of a cluster"),
    "sync": ("pointsweep.cli.sync", "mirror a store to MLflow"),
    "gc": ("pointsweep.cli.gc", "list or delete what a store no longer needs"),
    "schema": (
        "pointsweep.cli.schema",
        "print the JSON schema of a sweep file, for editors",
    ),
    "published": (
        "pointsweep.cli.published",
        "find inconsistencies in papers' numbers",
    ),
    "chaos": ("pointsweep.testing.chaos", "kill a small sweep again and again"),
}
SUBTITLE = (
    "Sweeps over ways to tune models of 3D point clouds: the YAML file is the table."
)
# they work on to their end when nobody reads their output any more
OUTLIVE_THEIR_READER = ("run", "chaos")
# the variable by which a shell asks for completions
ASKED_BY_SHELL = "_POINTSWEEP_COMPLETE"


class LazyCommands(typer.core.TyperGroup):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None

        module_name, _ = COMMANDS[cmd_name]
        return importlib.import_module(module_name).main.command()

    def resolve_command(
        self, ctx: Any, args: list[str]
    ) -> tuple[str | None, Any, list[str]]:
        """Return the command that the words begin with, and the words that follow."""
        name, *following = args
        command = self.get_command(ctx, name)

        if command is None and not ctx.resilient_parsing:
            ctx.fail(unknown("command", name, COMMANDS, "Commands"))

        return name, command, following

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the completions of a word in the place of a command, without importing the
        commands.
        """
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)

        completions = []
        for name, (_, text) in COMMANDS.items():
            if name.startswith(incomplete):
                completions.append(typer.core.CompletionItem(name, help=text))  # type: ignore[attr-defined]

        return completions

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the overview, which fits on a screen of 24 lines."""
        name = ctx.command_path
        formatter.write(f"usage: {name} COMMAND [OPTIONS] ...\n\n")
        formatter.write(f"{SUBTITLE}\n\n")

        rows = [(command, text) for command, (_, text) in COMMANDS.items()]

        with formatter.indentation():
            formatter.write_dl(rows)

        formatter.write(f"\nfirst steps: {name} new; {name} run first_sweep.yaml\n")
        formatter.write(
            "further: COMMAND --help, --version, --install-completion, --show-completion\n"
        )


app = typer.Typer(
    name="pointsweep",
    cls=LazyCommands,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP_OPTIONS},
)


@app.callback()
def overview(version: Version = False) -> None:
    """Take the options that stand before a command."""


def console() -> int:
    """Run what the command line asks for; return the exit code."""
    group = typer.main.get_command(app)
    if ASKED_BY_SHELL in os.environ:
        group(prog_name="pointsweep")  # typer answers the shell and ends

    arguments = sys.argv[1:] or ["--help"]
    outlives = arguments[0] in OUTLIVE_THEIR_READER
    return exit_code(lambda: run(group, "pointsweep", arguments), outlives)

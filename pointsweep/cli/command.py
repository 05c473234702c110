"""Parts shared by all commands: parsing of arguments, layout of help, and messages about mistakes
in them.

A command is a function whose typed parameters are its arguments and options, for typer. `Program`
makes of it what `pointsweep NAME` and `python -m pointsweep.NAME` run.
"""

from __future__ import annotations

import glob
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from pointsweep import __version__
from pointsweep.config import scalars
from pointsweep.errors import unknown
from pointsweep.utils.cli_exit import INVALID

WIDEST = 110  # columns of a help text, however wide the terminal is
NAME_COLUMNS = 22  # of an option and its value in a help text
HELP_OPTIONS = ["-h", "--help"]


def print_version(is_asked: bool) -> None:
    """Print the version and end the command, if it was asked for."""
    if is_asked:
        print(f"pointsweep {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, hidden=True)
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER",
        help="all trials (default: $POINTSWEEP_STORE, ~/pointsweep)",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="MLflow (default: $MLFLOW_TRACKING_URI, store); none",
    ),
]

AllowPluginsOption = Annotated[
    bool,
    typer.Option("--allow-plugins", help="import the Python code that the sweep names"),
]


def whole_number(text: str) -> int:
    """Read the value of an option that is a whole number from 0 on. Raises typer.BadParameter."""
    try:
        # typer gives it the default too, which is a number already
        return scalars.whole_argument(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def one_of(what: str, allowed: Callable[[], Sequence[str]]) -> Callable[[str], str]:
    """Return the reader of an option that takes one of some names; it refuses others with the
    nearest one.
    """

    def read(text: str) -> str:
        if text not in allowed():
            raise typer.BadParameter(unknown(what, text, allowed(), "Allowed"))
        return text

    return read


def complete_file(incomplete: str) -> list[str]:
    """Return what a shell offers for a sweep file: the sweeps that come with pointsweep, and files
    and folders here.
    """
    from pointsweep.sweep.yaml_document import shipped_names

    names = [name for name in shipped_names() if name.startswith(incomplete)]

    return names + _yaml_files(incomplete)


def complete_sweep(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return what a shell offers for a sweep: those in the store, and files here."""
    from pointsweep.storage.stores import open_store

    try:
        entries = open_store(ctx.params.get("store")).list("sweeps")
    except (OSError, ValueError):
        entries = []

    names = []
    for entry in entries:
        name = entry.rstrip("/")
        if entry.endswith("/") and name.startswith(incomplete):
            names.append(name)

    return names + _yaml_files(incomplete)


def _yaml_files(incomplete: str) -> list[str]:
    """Return the sweep files and the folders whose paths begin so."""
    folder, slash, begun = incomplete.rpartition("/")
    names = []

    for path in sorted(Path(folder or slash or ".").glob(f"{glob.escape(begun)}*")):
        name = f"{folder}{slash}{path.name}"
        if path.is_dir():
            names.append(f"{name}/")
        elif path.suffix in (".yaml", ".yml"):
            names.append(name)

    return names


class CompactCommand(typer.core.TyperCommand):
    """A command whose help is short enough for one screen: usage, description, a line each option,
    examples.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text."""
        formatter.write_usage(ctx.command_path, self.usage(ctx), prefix="usage: ")
        description, _, more = inspect.cleandoc(self.help or "").partition("\n\n")
        formatter.write("\n")
        formatter.write_text(description)

        arguments: list[tuple[str, str]] = []
        options: list[tuple[str, str]] = []

        for param in self.shown_params(ctx):
            rows = arguments if param.param_type_name == "argument" else options
            rows.append((_name_in_help(param), param.help or ""))

        formatter.write("\n")
        with formatter.indentation():
            formatter.write_dl([*arguments, *options], col_max=NAME_COLUMNS)

        for text in (more, self.epilog or ""):
            if text:
                formatter.write("\n")
                formatter.write(text + "\n")

    def shown_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options that the help lists: all but -h and --version, which the
        usage has.
        """
        all_params: list[Any] = self.get_params(ctx)
        shown = []

        for param in all_params:
            if not param.hidden and set(param.opts).isdisjoint(HELP_OPTIONS):
                shown.append(param)

        return shown

    def usage(self, ctx: Any) -> str:
        """Return what follows the command's name."""
        shown = self.shown_params(ctx)
        pieces = ["[--version]"]

        if any(param.param_type_name == "option" for param in shown):
            pieces.append("[OPTIONS]")

        for param in shown:
            if param.param_type_name == "argument":
                name = param.metavar or param.name.upper()
                if param.nargs == -1:
                    name += "..."

                pieces.append(name if param.required else f"[{name}]")

        return " ".join(pieces)


def _name_in_help(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())

    names = ", ".join(param.opts)
    if param.is_flag:
        return names

    return f"{names} {param.metavar}"


@dataclass(frozen=True)
class Program:
    """A command as typer runs it. `function` returns its exit code.

    Its docstring is the help: the first paragraph above the options, the others, as they are, below
    them.
    """

    name: str
    function: Callable[..., int]
    examples: tuple[str, ...] = ()

    def command(self) -> Any:
        """Return the command as an object of typer's."""
        epilog = None
        if self.examples:
            epilog = "examples:"
            for words in self.examples:
                epilog += f"\n  pointsweep {self.name} {words}".rstrip()

        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        settings = {"help_option_names": HELP_OPTIONS, "max_content_width": WIDEST}
        register = app.command(
            self.name, cls=CompactCommand, epilog=epilog, context_settings=settings
        )
        register(self.function)
        command = typer.main.get_command(app)
        command.context_settings["token_normalize_func"] = _full_names(command.params)

        return command

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command as `python -m pointsweep.NAME`; return its exit code."""
        command_line = sys.argv[1:] if arguments is None else list(arguments)
        return run(self.command(), f"python -m pointsweep.{self.name}", command_line)


def _full_names(params: Sequence[Any]) -> Callable[[str], str]:
    """Return a function that completes the beginning of an option's name, without its dashes, where
    one option alone begins so: `track` to `tracking-uri`. Any other name comes back unchanged.
    """
    known = {"h", "help"}
    for param in params:
        known.update(name.lstrip("-") for name in param.opts)

    def full_name(name: str) -> str:
        # -s is an option of its own, not the beginning of --store
        is_short = len(name) == 1
        if name in known or is_short:
            return name

        matches = [other for other in known if other.startswith(name)]
        return matches[0] if len(matches) == 1 else name

    return full_name


def run(command: Any, name: str, command_line: Sequence[str]) -> int:
    """Run a command of typer's with these words; return its exit code: 2, after a line, if it does
    not understand them.
    """
    try:
        with command.make_context(name, list(command_line)) as context:
            code: int = command.invoke(context)
            return code
    except typer.Exit as end:  # after a help text or a version
        return end.exit_code
    except typer.TyperException as error:
        print(_mistake(error, name), file=sys.stderr)
        return INVALID


def _mistake(error: typer.TyperException, name: str) -> str:
    """Return what is printed of words that a command does not understand."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else name
    near = getattr(error, "possibilities", None)
    text = error.message if near else error.format_message()
    hint = f". Did you mean {' or '.join(sorted(near))}?" if near else ""

    return f"{path}: {text}{hint}\n{path} --help lists what there is"

"""The command serve: show the sweeps of a store in the browser while they run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from pointsweep.cli.command import (
    Program,
    StoreOption,
    Version,
    complete_sweep,
    whole_number,
)
from pointsweep.cli.tables import html
from pointsweep.errors import unknown
from pointsweep.reporting.standing import sweep_names
from pointsweep.reporting.stored import is_sweep_file
from pointsweep.storage.base import Store
from pointsweep.storage.stores import open_store
from pointsweep.utils.cli_exit import INVALID

LOCAL, PORT = "127.0.0.1", 8270


@dataclass(frozen=True)
class ServeOptions:
    """The options of serve, as the command line gives them."""

    sweep: str | None = None
    store: str | None = None
    host: str = LOCAL
    port: int = PORT
    token: str | None = None  # a file


def serve(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            help="the sweep to open; without it a list of all",
            autocompletion=complete_sweep,
        ),
    ] = None,
    store: StoreOption = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="HOST",
            help=f"where to listen ({LOCAL}); beyond it asks for a token",
        ),
    ] = LOCAL,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            metavar="N",
            parser=whole_number,
            help=f"0 takes a free one (default: {PORT})",
        ),
    ] = PORT,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="FILE",
            help="holds the token to ask for (or $POINTSWEEP_SERVE_TOKEN)",
        ),
    ] = None,
    version: Version = False,
) -> int:
    """Show the sweeps of a store in the browser while they run. Only reads; Ctrl-C ends it.

    exit codes: 0 ended, 2 no such sweep, or the port is taken
    """
    return watch(ServeOptions(sweep, store, host, port, token))


main = Program(
    "serve", serve, examples=("", "quickstart", "--port 0 --store s3://bucket/prefix")
)


def watch(options: ServeOptions) -> int:
    """Serve until a signal; return the exit code."""
    from pointsweep.serving.listening import given_token
    from pointsweep.serving.listening import serve as listen
    from pointsweep.serving.watch import StoreWatch

    try:
        store = open_store(options.store)
        path = f"/sweeps/{_known_name(options.sweep, store)}" if options.sweep else "/"
        token = given_token(options.token)
        listen(StoreWatch(store, html), options.host, options.port, token, path, _say)
    except ValueError as error:  # StoreError, ConfigError and ServeError are such
        print(error, file=sys.stderr)
        return INVALID

    return 0


def _known_name(sweep: str, store: Store) -> str:
    """Return the name of a sweep of the store, given by its name or its file. Raises ValueError."""
    name = sweep
    if is_sweep_file(sweep):
        from pointsweep.sweep.sweep import load

        name = load(sweep).name

    names = sweep_names(store)
    if name not in names:
        raise ValueError(unknown("sweep", name, names, f"In {store.url}"))

    return name


def _say(address: str) -> None:
    print(f"{address}\nCtrl-C ends it", flush=True)

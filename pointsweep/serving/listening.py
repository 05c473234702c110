"""Socket of the server, the token it asks for, and its end."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI

from pointsweep.serving.application import Access, application
from pointsweep.serving.watch import StoreWatch

TOKEN_VARIABLE = "POINTSWEEP_SERVE_TOKEN"
SHORTEST = 16  # characters of a token
HIGHEST_PORT = 65535
PATIENCE_S = 1  # for open connections, at the end


class ServeError(ValueError):
    """The server cannot be started as it was asked for."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    if host == "localhost":
        return True

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def given_token(file: str | None) -> str:
    """Return the token of a file, else of the environment; empty if there is none. Raises
    ServeError.
    """
    if file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ServeError(f"--token: {file} cannot be read: {reason}") from error

        source = f"--token: {file}"
    else:
        if TOKEN_VARIABLE not in os.environ:
            return ""

        token = os.environ[TOKEN_VARIABLE].strip()
        source = f"${TOKEN_VARIABLE}"

    if len(token) < SHORTEST or not token.isprintable() or not token.isascii():
        raise ServeError(
            f"{source} is no token: {len(token)} characters; allowed: {SHORTEST} or more, ASCII, on"
            " one line"
        )

    return token


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ServeError."""
    if port > HIGHEST_PORT:
        raise ServeError(f"--port: {port}; allowed: 0 to {HIGHEST_PORT}")

    try:
        addresses = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ServeError(
            f"--host: {host} is no address of this machine: {error}"
        ) from error

    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ServeError(
            f"{host}, port {port}: {reason}; --port 0 takes a port that is free"
        ) from error

    return listener


def address(host: str, port: int, path: str, token: str) -> str:
    """Return the address that a browser opens."""
    name = host
    if host in ("0.0.0.0", "::", ""):
        name = socket.gethostname()

    if ":" in name:  # an address of IPv6
        name = f"[{name}]"

    query = f"?token={quote(token)}" if token else ""
    return f"http://{name}:{port}{path}{query}"


def serve(
    watch: StoreWatch,
    host: str,
    port: int,
    token: str,
    path: str,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; `say` gets the address. Beyond this machine, and where one is
    given, a token is asked for. Raises ServeError.
    """
    new_token = "" if token or is_loopback(host) else secrets.token_urlsafe(32)
    listener = listen(host, port)
    access = Access(token or new_token, frozenset({"localhost", host.lower()}))

    with listener:
        server = Server(watch, access)
        say(address(host, listener.getsockname()[1], path, new_token))
        server.run_until_signal(listener)


class Server:
    """uvicorn with the application, until a signal."""

    def __init__(self, watch: StoreWatch, access: Access) -> None:
        app: FastAPI = application(watch, access, self.ending)
        # The log of requests would show a token that stands in an address.
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="critical",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=PATIENCE_S,
        )

        self.uvicorn = uvicorn.Server(config)

    def ending(self) -> bool:
        """Return whether the server ends."""
        return self.uvicorn.should_exit

    def run_until_signal(self, listener: socket.socket) -> None:
        """Serve on a socket until SIGINT or SIGTERM."""

        def ended(number: int, frame: FrameType | None) -> None:
            self.uvicorn.should_exit = True

        # uvicorn ends by itself, and hands the signal on when it has.
        numbers = (signal.SIGINT, signal.SIGTERM)
        old_handlers = {number: signal.signal(number, ended) for number in numbers}
        try:
            self.uvicorn.run(sockets=[listener])
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)

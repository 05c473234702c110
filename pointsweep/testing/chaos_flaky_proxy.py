"""An MLflow server at the end of a bad line, for chaos.py: what is asked of it is refused, delayed,
or done and not answered.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KINDS = ("refused", "lost", "429", "500", "slow")
START_S = 120.0  # for the server to answer
PORTS = 3  # to try
PASSED_ON = ("Content-Type", "Content-Encoding", "Accept", "Authorization")


@dataclass
class Line:
    """A port of loopback in front of a server. A `share` of the requests goes wrong, in ways drawn
    from `kinds`.

    `refused`: the connection is closed, nothing was done; `lost`: the request is carried out and
    its answer lost; `429` and `500`: answered so, nothing was done; `slow`: done and answered after
    `slow_s`.
    """

    target: int  # the server's port
    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    only: str = ""  # in the path of the requests that go wrong; all others pass
    slow_s: float = 1.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    met: dict[str, int] = field(default_factory=dict)  # how often each kind went wrong
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, path: str) -> str:
        """Return what happens to the next request; "" for nothing."""
        with self.lock:
            kind = ""
            if self.only in path and self.chance.random() < self.share:
                kind = self.chance.choice(self.kinds)

            self.met[kind] = self.met.get(kind, 0) + 1
            return kind

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serves in a thread; the address to take in place of the server's."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @contextlib.contextmanager
    def apart(self) -> Iterator[str]:
        """Serve as `served` does, in a process of its own."""
        reading, writing = os.pipe()
        pid = os.fork()

        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with self.served() as address:
                os.write(writing, address.encode())
                os.close(writing)
                signal.pause()

            os._exit(0)

        os.close(writing)
        with open(reading) as pipe:  # noqa: PTH123 - a pipe has no path
            address = pipe.read()

        try:
            yield address
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _passed_on(headers: Message) -> dict[str, str]:
    """Return those headers of a request that the server gets too."""
    return {name: headers[name] for name in PASSED_ON if name in headers}


def _handler(line: Line) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = line.draw(self.path)
            self.close_connection = True

            if kind == "refused":
                return

            if kind in ("429", "500"):
                self.send_error(int(kind))
                return

            if kind == "slow":
                time.sleep(line.slow_s)

            with contextlib.suppress(OSError, http.client.HTTPException):
                # without a server the line is closed
                status, content_type, content = self._ask(body)
                if kind != "lost":
                    self._answer(status, content_type, content)

        def _ask(self, body: bytes) -> tuple[int, str, bytes]:
            connection = http.client.HTTPConnection(
                "127.0.0.1", line.target, timeout=60
            )
            headers = _passed_on(self.headers)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()

            with contextlib.closing(connection):
                content_type = answer.getheader("Content-Type", "application/json")
                return answer.status, content_type, answer.read()

        def _answer(self, status: int, content_type: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass

    return Handler


@contextlib.contextmanager
def server(folder: Path, empty: Path | None = None) -> Iterator[int]:
    """A real MLflow server on a free port of loopback, with database (a copy of `empty`) and
    artifacts in `folder`; the port.

    Raises TimeoutError if it does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if empty is not None and not (folder / "server.db").exists():
        shutil.copy(empty, folder / "server.db")

    for attempt in range(1, PORTS + 1):
        port = free_port()
        process = _start(folder, port)
        try:
            if _answers(process, port):
                yield port
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        # Somebody else may have been given the port meanwhile.
        if attempt == PORTS:
            raise TimeoutError(
                f"the MLflow server does not answer; see {folder / 'log'}"
            )


def _start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "mlflow", "server"]
    line += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    line += ["--artifacts-destination", str(folder / "artifacts")]
    line += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]

    # ten processes that nothing here needs
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            line, stdout=log, stderr=log, start_new_session=True, env=environment
        )


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    address = f"http://127.0.0.1:{port}/health"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(address, timeout=5) as answer,
        ):
            if answer.status == 200:
                return True

        time.sleep(0.2)

    return False


def free_port() -> int:
    """A port of loopback that nobody listens at just now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])

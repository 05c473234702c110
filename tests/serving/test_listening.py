"""The command as its user has it: the address it prints, the port, the token, its end; and what it refuses."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pointsweep.cli import serve
from pointsweep.serving.listening import ServeError, address, given_token, is_loopback
from pointsweep.storage.base import FileStore
from tests.serving.made import KEYS, begin, finish, hold, plan

COMMAND = [sys.executable, "-c", "import sys; from pointsweep.cli.app import console; sys.exit(console())", "serve"]
TOKEN = "a-token-of-the-test"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = FileStore(tmp_path / "store")
    plan(store)
    first, second, *_ = KEYS.values()
    finish(store, first)
    begin(store, second, 2)
    hold(store, second)
    return store.root


@contextmanager
def served(root: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it prints first."""
    variables = {name: value for name, value in os.environ.items() if name != "POINTSWEEP_SERVE_TOKEN"} | environment
    line = [*COMMAND, "--store", str(root), "--port", "0", *words]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command that ends says after its first line."""
    process.wait(timeout=30)
    return process.stdout.read(), process.stderr.read()


def asked(url: str, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer; the path is sent as it stands."""
    port = int(re.search(r":(\d+)", url)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_at_a_signal_while_somebody_watches(root, number):
    with served(root, "made") as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/sweeps/made", url)
        stream = socket.create_connection(("127.0.0.1", int(re.search(r":(\d+)", url)[1])), timeout=30)
        stream.sendall(b"GET /sweeps/made/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = b""
        while b"event: state" not in seen:
            seen += stream.recv(65536)
        # what a browser sends as its paths' dots resolved, a program may send as it is
        for path in ("/sweeps/../../etc/passwd", "/sweeps/..", "/assets/../../listening.py", "/..%2f..%2fplan.json", "//etc/passwd"):
            assert asked(url, path)[0] == 404, path
        status, page, headers = asked(url, "/sweeps/made")
        assert status == 200 and "1 of 4 finished" in page and "server" not in headers
        begun = time.monotonic()
        process.send_signal(number)
        output, errors = rest(process)
        assert time.monotonic() - begun < 3
        assert (process.returncode, output, errors) == (0, "Ctrl-C ends it\n", "")


def test_beyond_this_machine_it_makes_a_token_and_prints_the_address_with_it_once(root):
    with served(root, "--host", "0.0.0.0") as (process, url):
        name, token = re.fullmatch(r"http://(\S+):\d+/\?token=([\w-]{43})", url).groups()
        assert name == socket.gethostname()
        assert asked(url, "/")[0] == 401
        assert asked(url, "/", Authorization=f"Bearer {token}")[0] == 200
        status, _, headers = asked(url, f"/?token={token}")
        assert status == 303
        assert asked(url, "/sweeps/made", Cookie=headers["set-cookie"].partition(";")[0])[0] == 200
        assert asked(url, f"/sweeps/made/report?token=x{token}")[0] == 401
        process.send_signal(signal.SIGINT)
        output, errors = rest(process)
        assert token not in output + errors


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_token_of_ones_own_is_asked_for_here_too_and_never_printed(root, tmp_path, way):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    words = ["--token", str(tmp_path / "token")] if way == "file" else []
    variables = {"POINTSWEEP_SERVE_TOKEN": TOKEN} if way == "environment" else {}
    with served(root, *words, **variables) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        status, page, _ = asked(url, "/")
        assert status == 401 and 'name="token"' in page
        assert asked(url, "/", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert asked(url, f"/?token={TOKEN}")[0] == 303
        process.send_signal(signal.SIGINT)
        output, errors = rest(process)
        assert TOKEN not in url + output + errors


def test_what_cannot_be_served_ends_it_with_2_and_a_line(root, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("POINTSWEEP_SERVE_TOKEN", raising=False)
    store = ["--store", str(root)]

    def refused(*words: str) -> str:
        assert serve.main([*words, *store]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        return output.err

    assert "unknown sweep 'mad'. Did you mean 'made'?" in refused("mad")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use; --port 0 takes a port that is free" in refused("--port", str(port))
    assert "--port: 70000; allowed: 0 to 65535" in refused("--port", "70000")
    assert "--host: no.such.host" in refused("--host", "no.such.host")
    assert "token cannot be read: No such file" in refused("--token", str(tmp_path / "token"))
    for text in ("", "short", "long enough, with ä and more"):
        (tmp_path / "token").write_text(text)
        message = refused("--token", str(tmp_path / "token"))
        assert "is no token" in message and (not text or text not in message)
    monkeypatch.setenv("POINTSWEEP_SERVE_TOKEN", "")
    assert "$POINTSWEEP_SERVE_TOKEN is no token: 0 characters" in refused()
    assert serve.main(["--store", "ftp://x"]) == 2


def test_a_token_is_read_without_the_end_of_its_line(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("POINTSWEEP_SERVE_TOKEN", "another-token-of-it")
    assert given_token(str(tmp_path / "token")) == TOKEN
    assert given_token(None) == "another-token-of-it"
    monkeypatch.delenv("POINTSWEEP_SERVE_TOKEN")
    assert given_token(None) == ""
    (tmp_path / "token").write_text("two lines that\nare long enough")
    with pytest.raises(ServeError, match="is no token"):
        given_token(str(tmp_path / "token"))


def test_addresses_can_be_opened():
    assert address("127.0.0.1", 80, "/", "") == "http://127.0.0.1:80/"
    assert address("::1", 80, "/sweeps/a", "") == "http://[::1]:80/sweeps/a"
    assert address("0.0.0.0", 80, "/", "t") == f"http://{socket.gethostname()}:80/?token=t"
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "node-3", "")] == [False] * 5


def test_a_store_that_answers_late_does_not_keep_the_command(root, monkeypatch):
    """Looks run in threads that end with the process."""
    from pointsweep.cli.tables import html
    from pointsweep.serving.application import Access
    from pointsweep.serving.listening import Server, listen
    from pointsweep.serving.watch import StoreWatch

    store = FileStore(root)
    entered = threading.Event()
    monkeypatch.setattr(store, "list", lambda prefix: entered.set() or time.sleep(60))
    server = Server(StoreWatch(store, html), Access())

    def interrupt() -> None:
        with socket.create_connection(listener.getsockname(), timeout=30) as stream:
            stream.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert entered.wait(30)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3)

    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert entered.wait(0.0) is False
        server.run_until_signal(listener)
        ended = time.monotonic()
    assert all(each.daemon for each in threading.enumerate() if each.name == "look")
    thread.join()
    assert time.monotonic() - ended > 1, "the server had ended while the store kept silent"

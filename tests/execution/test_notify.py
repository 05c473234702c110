"""The word at the end of a sweep: what is sent, and that nobody's silence changes anything or gives a secret away."""

from __future__ import annotations

import contextlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator

import pytest

from pointsweep.cli.run import main
from pointsweep.execution import notify
from pointsweep.execution.notify import announce, problem_of
from tests.end_to_end.test_command import SWEEP

TOLD = ("tiny", 0, "9 finished, 0 to run", "the table")


@contextlib.contextmanager
def listening(status: int = 200) -> Iterator[tuple[str, list[dict]]]:
    """A server that answers so; its URL with a secret, and what it was sent."""
    received: list[dict] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.headers["Content-Type"] == "application/json"
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hooks/SECRET?token=SECRET", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_url_and_a_command_get_the_table(tmp_path, capfd):
    copy = f"{sys.executable} -c 'import sys; open(sys.argv[1], \"w\").write(sys.stdin.read())' {tmp_path / 'told.json'}"
    with listening() as (url, received):
        announce([url, copy], *TOLD)
    wanted = {"sweep": "tiny", "status": "complete", "exit_code": 0, "counts": "9 finished, 0 to run", "table": "the table"}
    wanted["text"] = "tiny: complete, 9 finished, 0 to run\n```\nthe table\n```"
    assert received == [wanted]
    assert json.loads((tmp_path / "told.json").read_text()) == wanted
    assert capfd.readouterr() == ("", "")


def test_who_cannot_be_told_is_named_without_secrets_and_the_others_are_told(capfd, monkeypatch):
    monkeypatch.setattr(notify, "LIMIT_S", 0.5)
    fails, hangs = (f"{sys.executable} -c 'import time; {body}'" for body in ("raise SystemExit(4)", "time.sleep(60)"))
    with listening() as (url, received), listening(500) as (broken, _):
        announce(
            [broken, "http://127.0.0.1:1/SECRET", "http://127.0.0.1:x/SECRET", "/nowhere/at/all SECRET", fails, hangs, url], *TOLD
        )
    assert len(received) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "notify: 127.0.0.1 was not told: it answered 500",
        "notify: 127.0.0.1 was not told: ConnectionRefusedError",
        "notify: 127.0.0.1 was not told: InvalidURL",
        "notify: /nowhere/at/all was not told: FileNotFoundError",
        f"notify: {sys.executable} was not told: it ended with exit code 4",
        f"notify: {sys.executable} was not told: TimeoutExpired",
    ]


@pytest.mark.parametrize(
    "target, problem", [("", "it is empty"), ("say 'x", "cannot be read"), ("https:///x", "names no host"), ("say x", "")]
)
def test_targets_are_checked_before_anything_starts(target, problem):
    assert problem in problem_of(target) and bool(problem) == bool(problem_of(target))


def test_the_command_tells_at_its_end_and_keeps_its_exit_code(store, tmp_path, monkeypatch, capfd):
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(SWEEP.replace("[lora, head_only]", "[head_only]").replace("seeds: 2", "seeds: 1"))
    with listening() as (url, received), listening(500) as (broken, _):
        monkeypatch.setenv("POINTSWEEP_NOTIFY", broken)
        assert main([str(sweep), "--inline", "--tracking-uri", "none", "--notify", url]) == 0
    [message] = received
    assert message["counts"] == "2 finished, 0 to run"
    assert message["table"] == (store / "sweeps" / "tiny" / "table.txt").read_text().removesuffix("\n")
    told = capfd.readouterr()
    assert "was not told: it answered 500" in told.err
    assert "SECRET" not in told.out + told.err
    assert not [path for path in store.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
    assert main([str(sweep), "--inline", "--notify", ""]) == 2

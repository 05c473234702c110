"""An S3 server on loopback for tests, which loses answers, cuts bodies and refuses as often as it is told to."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from unittest import mock

BUCKET = "bucket"


@dataclass
class Faults:
    """Which share of the requests goes wrong, and how."""

    share: float = 0.0
    kinds: tuple[str, ...] = ("refused", "refused after", "cut")
    random: random.Random = field(default_factory=lambda: random.Random(0))
    met: int = 0

    def draw(self) -> str:
        if self.random.random() >= self.share:
            return ""
        self.met += 1
        return self.random.choice(self.kinds)


class Unreliable:
    """A WSGI application before the server."""

    def __init__(self, application, faults: Faults) -> None:
        self.application, self.faults, self.lock = application, faults, threading.Lock()

    def __call__(self, environ, start_response) -> Iterable[bytes]:
        kind = self.faults.draw()
        if kind != "refused":
            # Real S3 answers with the old or the new object; this server closes the old one while it is read.
            with self.lock:
                body = b"".join(self.application(environ, start_response if kind != "refused after" else lambda *_: None))
            if kind != "refused after":  # the request was carried out, its answer is lost
                return [body[: len(body) // 2] if kind == "cut" and environ["REQUEST_METHOD"] == "GET" else body]
        start_response("503 Slow Down", [("Content-Length", "0")])
        return []


@contextlib.contextmanager
def served() -> Iterator[Faults]:
    """A server with an empty bucket; the environment names it while it runs."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults()
    server = make_server("127.0.0.1", 0, Unreliable(DomainDispatcherApplication(create_backend_app), faults), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    variables = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with mock.patch.dict(os.environ, variables):
        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
        yield faults
    server.shutdown()
    server.server_close()
    thread.join()

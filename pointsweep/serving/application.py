"""The routes, who may ask, and the server-sent events.

Everything is a GET, and nothing is written. What looks at the store runs in threads that do not
keep the process from ending, however long a server of objects lets them wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from pointsweep.errors import unknown
from pointsweep.reporting.html.page import plotly_file
from pointsweep.serving import pages
from pointsweep.serving.watch import ASSETS, StoreWatch, SweepWatch
from pointsweep.utils.masking import masked, scrubbed

log = logging.getLogger("pointsweep.serving")

T = TypeVar("T")
Answer = Callable[[Request], Awaitable[Response]]

COOKIE = "pointsweep-serve"
# a page waits so long for the store before it is sent without its content
FIRST_LOOK_S = 2.0
# plotly.js has its version in its name: what a browser has kept of it is never out of date
KEPT = "public, max-age=31536000, immutable"
ALIVE_S = 4.0  # between two signs of life; a browser gives up after three of them
STEP_S = 0.25  # in which a stream notices that the server ends
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; frame-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Access to the server: whoever has the token; without one whoever asks for one of these hosts,
    which are names of this machine.
    """

    token: str = ""
    hosts: frozenset[str] = frozenset({"localhost"})

    def names_this_machine(self, host: str) -> bool:
        """Return whether a request was made for this machine: the page of another site that has its
        own name lead here (DNS rebinding) was not.
        """
        name = host
        if not host.endswith("]"):  # else an address of IPv6 without a port
            name = host.rsplit(":", 1)[0]

        name = name.strip("[]").lower()
        if name in self.hosts:
            return True

        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def is_right(self, text: str) -> bool:
        """Return whether a text is the token; it takes as long for any text."""
        return hmac.compare_digest(text.encode(), self.token.encode())

    def ticket(self) -> str:
        """Return what a browser keeps in the token's place."""
        code = hmac.new(self.token.encode(), b"pointsweep serve", hashlib.sha256)
        return code.hexdigest()

    def admits(self, request: Request) -> bool:
        """Return whether a request comes from somebody who may look."""
        if not self.token:
            return self.names_this_machine(request.headers.get("host", ""))

        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_right(given.strip()):
            return True

        ticket = request.cookies.get(COOKIE, "")
        return hmac.compare_digest(ticket.encode(), self.ticket().encode())


async def in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns, done in a thread that ends with the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised

        with suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="look", daemon=True).start()
    return await done


async def soon(work: Callable[[], T]) -> T | None:
    """Return what `work` returns, or None where that takes long; it goes on all the same."""
    task = asyncio.ensure_future(in_thread(work))
    finished, _ = await asyncio.wait({task}, timeout=FIRST_LOOK_S)
    return task.result() if finished else None


def application(
    watch: StoreWatch, access: Access, ending: Callable[[], bool] = lambda: False
) -> FastAPI:
    """Return the application. `ending` tells its streams that the server ends."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard(access))
    routes = Routes(watch, ending)
    app.get("/")(routes.index)
    app.get("/events")(routes.index_events)
    app.get("/sweeps/{name}")(routes.sweep)
    app.get("/sweeps/{name}/report")(routes.report)
    app.get("/sweeps/{name}/events")(routes.sweep_events)
    app.get(f"{ASSETS}{{name}}")(routes.asset)

    return app


class Routes:
    """Routes of the server: what is answered at each address."""

    def __init__(self, watch: StoreWatch, ending: Callable[[], bool]) -> None:
        self.watch = watch
        self.ending = ending

    async def index(self) -> Response:
        """The list of sweeps."""
        states = await soon(self.watch.look_at_all)
        url = masked(self.watch.store.url)
        return _page(pages.index(states, url, self.watch.problem))

    async def index_events(self) -> Response:
        """Return a stream of what changes in the list."""

        def look() -> dict[str, str]:
            states = self.watch.look_at_all()
            return {"html": pages.index_content(states, self.watch.problem)}

        return _stream(look, self.ending)

    async def sweep(self, name: str) -> Response:
        """The page of a sweep, around its report."""
        sweep_watch = await self._find(name)
        if sweep_watch is None:
            return self._unknown(name)

        state = await soon(sweep_watch.look)
        await soon(sweep_watch.make_report)

        return _page(pages.sweep(state, name, sweep_watch.report_version))

    async def report(self, name: str, request: Request) -> Response:
        """The report of a sweep as far as it is filled."""
        sweep_watch = await self._find(name)
        if sweep_watch is None:
            return self._unknown(name)

        state = await in_thread(sweep_watch.look)
        report = await in_thread(sweep_watch.make_report)
        problem = state.problem or "There is no table yet."

        if report is not None:
            problem = report.problem

        if report is None or problem:
            return _page(pages.message(name, problem))

        # The page has a policy of its own, for its own scripts.
        headers = {"Content-Security-Policy": "frame-ancestors 'self'"}
        return _packed(
            report.data,
            report.packed,
            kind="text/html",
            headers=headers,
            request=request,
        )

    async def sweep_events(self, name: str) -> Response:
        """Return a stream of what changes on the page of a sweep."""
        sweep_watch = await self._find(name)
        if sweep_watch is None:
            return self._unknown(name)

        making = Making(sweep_watch)

        def look() -> dict[str, str]:
            state = sweep_watch.look()
            making.start()
            version = sweep_watch.report_version
            content = pages.sweep_content(state)
            title = pages.tab_title(state)

            return {"html": content, "version": version, "title": title}

        return _stream(look, self.ending)

    async def asset(self, name: str, request: Request) -> Response:
        """A script or a style sheet."""
        if name == await in_thread(plotly_file):
            data, packed = await in_thread(pages.plotly)
            return _packed(
                data,
                packed,
                kind="text/javascript",
                headers={"Cache-Control": KEPT},
                request=request,
            )

        if name not in pages.ASSETS:
            return _page(pages.message("Not found", "There is no such file."), 404)

        return Response(pages.asset(name), media_type=pages.ASSETS[name])

    async def _find(self, name: str) -> SweepWatch | None:
        return await in_thread(lambda: self.watch.sweep(name))

    def _unknown(self, name: str) -> Response:
        names = self.watch.names()
        text = self.watch.problem or unknown("sweep", name, names, "In the store")
        return _page(pages.message("Not found", text), 404)


class Making:
    """The report of a sweep, made beside the stream that tells of it."""

    def __init__(self, watch: SweepWatch) -> None:
        self.watch = watch
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to make the report if it is due and nobody does."""
        busy = self.thread is not None and self.thread.is_alive()
        if not busy and self.watch.report_due():
            self.thread = threading.Thread(
                target=self._make, name="report", daemon=True
            )
            self.thread.start()

    def _make(self) -> None:
        try:
            self.watch.make_report()
        except Exception:
            log.exception("the report of %s cannot be made", self.watch.name)


def _guard(access: Access) -> Callable[[Request, Answer], Awaitable[Response]]:
    """Return what stands before every answer: who may ask, and the headers of all of them."""

    async def guard(request: Request, handler: Answer) -> Response:
        token = request.query_params.get("token")
        if access.token and token is not None and access.is_right(token):
            # without the token, and to no other host: //host is an address too
            path = "/" + request.url.path.lstrip("/")
            response: Response = RedirectResponse(path, status_code=303)
            response.set_cookie(COOKIE, access.ticket(), httponly=True, samesite="lax")
        elif access.admits(request) or request.url.path.startswith(ASSETS):
            response = await _answered(request, handler)
        else:
            response = _refused(access)

        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)

        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return guard


async def _answered(request: Request, handler: Answer) -> Response:
    try:
        response = await handler(request)
    except Exception as error:
        log.exception("%s cannot be shown", request.url.path)
        text = scrubbed(f"{type(error).__name__}: {error}")
        return _page(pages.message("This cannot be shown", text))

    # What no route answers FastAPI answers in JSON.
    kind = response.headers.get("content-type")
    if response.status_code == 404 and kind == "application/json":
        return _page(pages.message("Not found", "There is no such page."), 404)

    return response


def _refused(access: Access) -> Response:
    if access.token:
        text = "Open the address that the server printed, or enter its token."
        return _page(pages.message("A token is needed", text, ask_token=True), 401)

    text = "This server answers to names of its own machine, such as localhost and 127.0.0.1."
    return _page(pages.message("Another name", text), 421)


def _packed(
    data: bytes, packed: bytes, kind: str, headers: dict[str, str], request: Request
) -> Response:
    """Return data, or the same packed by gzip to who takes that."""
    headers = {**headers, "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(data, media_type=kind, headers=headers)

    headers["Content-Encoding"] = "gzip"
    return Response(packed, media_type=kind, headers=headers)


def _page(text: str, status: int = 200) -> Response:
    return Response(text, status_code=status, media_type="text/html")


def _stream(
    read_state: Callable[[], dict[str, Any]], ending: Callable[[], bool]
) -> Response:
    events = _events(read_state, ending)
    return StreamingResponse(events, media_type="text/event-stream")


async def _events(
    read_state: Callable[[], dict[str, Any]], ending: Callable[[], bool]
) -> AsyncIterator[str]:
    """Yield what `read_state` returns whenever it has changed, and signs of life."""
    yield "retry: 1000\n\n"
    last_state: dict[str, Any] | None = None
    sent_at = 0.0

    while not ending():
        state = await in_thread(read_state)
        now = time.monotonic()
        if state != last_state:
            yield f"event: state\ndata: {json.dumps(state)}\n\n"
            last_state = state
            sent_at = now
        elif now - sent_at >= ALIVE_S:
            yield "event: alive\ndata: .\n\n"  # browsers drop an event without data
            sent_at = now

        for _ in range(4):
            if ending():
                return
            await asyncio.sleep(STEP_S)

"""What a browser is answered: pages, events, headers; and to whom."""

from __future__ import annotations

import html
import json
import re
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from pointsweep.serving import application as module
from pointsweep.serving.application import Access, application
from pointsweep.storage.base import FileStore
from tests.serving.made import KEYS, at_once, begin, damage, fail, finish, hold, plan, watched

FIRST, SECOND, THIRD, FOURTH = KEYS.values()
TOKEN = "a-token-of-the-test"
EVIL = "<script>document.title='taken'</script>"


@pytest.fixture(autouse=True)
def _patient(monkeypatch) -> None:
    """A page waits for its content, however busy this machine is."""
    monkeypatch.setattr(module, "FIRST_LOOK_S", 60.0)


@pytest.fixture
def disk(tmp_path: Path) -> FileStore:
    store = FileStore(tmp_path / "store")
    plan(store, per_hour=3600.0)
    finish(store, FIRST)
    begin(store, SECOND, 2)
    hold(store, SECOND)
    return store


def client(disk: FileStore, access: Access | None = None, base: str = "http://127.0.0.1:8270") -> TestClient:
    """A client of a server that ends, so that its streams do."""
    return TestClient(application(watched(disk), access or Access(), lambda: True), base_url=base)


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def events(disk: FileStore, path: str, change=lambda: None, looks: int = 2) -> list[tuple[str, dict]]:
    """What a stream sends in so many looks; `change` is called between them."""
    watch = watched(disk)
    left = iter(range(looks))

    def ending() -> bool:
        if next(left, None) is None:
            return True
        for thread in threading.enumerate():
            if thread.name == "report":
                thread.join()
        if watch.sweep("made").version:
            change()
        for each in (watch, *watch._sweeps.values()):
            at_once(each)
        return False

    module.STEP_S, before = 0.0, module.STEP_S
    try:
        answer = TestClient(application(watch, Access(), ending), base_url="http://localhost").get(path)
    finally:
        module.STEP_S = before
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("retry: 1000\n\n")
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    return [(name, json.loads(data) if name == "state" else {}) for name, data in found]


def test_the_index_lists_the_sweeps_with_progress_time_left_and_price(disk):
    fail(disk, THIRD)
    plan(disk, "another", cells=())
    disk.write("sweeps/broken/plan.json", b"{")
    answer = client(disk).get("/")
    assert answer.status_code == 200
    rows = dict(re.findall(r'<tr data-sweep="(\w+)">(.*?)</tr>', answer.text, re.S))
    assert list(rows) == ["another", "broken", "made"]
    # 12.5 s finished, two and one epochs of 10 s; 0.5 + 0.75 + 1 trials of 12.5 s are left
    assert text_of(rows["made"]) == "made The sweep made running 1 of 4 1 1 28 s 42 s 42.5"
    assert '<progress max="4" value="1"' in rows["made"]
    assert text_of(rows["another"]).startswith("another The sweep another done 0 of 0")
    assert "plan.json" in text_of(rows["broken"])
    assert 'href="/sweeps/made"' in rows["made"]


def test_a_sweeps_page_has_its_running_trials_and_the_report_as_far_as_it_is_filled(disk):
    found = client(disk)
    page = found.get("/sweeps/made").text
    assert "lora / tiny / seed 1 epoch 2 of 4, test/accuracy 20.0 %" in text_of(page)
    assert "1 of 4 finished 1 running about 31 s left" in text_of(page)
    assert '<polyline points="2.0,26.0 118.0,2.0"/>' in page, "from 0.1 to 0.2"
    report = found.get("/sweeps/made/report")
    assert report.status_code == 200
    assert "50.0 (n=1/2)" in report.text and "0/2" in report.text


def test_an_empty_store_and_one_that_does_not_exist_are_shown(tmp_path):
    assert "No sweeps yet." in client(FileStore(tmp_path / "none")).get("/").text
    assert not (tmp_path / "none").exists()


def test_events_tell_of_a_change_and_of_nothing_else(disk):
    sent = events(disk, "/sweeps/made/events", looks=12)
    assert [name for name, _ in sent if name == "state"] == ["state"] * len(sent)
    first = sent[0][1]
    assert first["title"] == "1/4 made" and "1 of 4 finished" in text_of(first["html"])
    last = sent[-1][1]
    assert re.fullmatch("[0-9a-f]{16}", last["version"]), "the report that was made meanwhile"
    assert last["html"] == first["html"]

    sent = events(disk, "/sweeps/made/events", lambda: finish(disk, SECOND), looks=12)
    assert "2 of 4 finished" in text_of(sent[-1][1]["html"])
    sent = events(disk, "/events", lambda: finish(disk, THIRD), looks=12)
    assert "3 of 4" in text_of(sent[-1][1]["html"])


def test_a_stream_says_that_it_is_there_when_nothing_changes(disk, monkeypatch):
    monkeypatch.setattr(module, "ALIVE_S", 0.0)
    sent = events(disk, "/events", looks=12)
    assert [name for name, _ in sent][:2] == ["state", "alive"]


@pytest.mark.parametrize(
    "name", ["%2e%2e", "%2e%2e%2f%2e%2e%2fetc", "made%2f..%2fmade", "made%00", "nothing", "a%5cb", "%20", "m" * 5000]
)
@pytest.mark.parametrize("path", ["/sweeps/{}", "/sweeps/{}/report", "/sweeps/{}/events", "/assets/{}"])
def test_names_that_are_no_sweep_lead_nowhere(disk, name, path):
    disk.path("trials/plan.json").write_text("outside")
    answer = client(disk).get(path.format(name), follow_redirects=False)
    assert answer.status_code == 404
    assert "outside" not in answer.text


def test_an_unknown_sweep_is_answered_with_the_nearest_name(disk):
    answer = client(disk).get("/sweeps/mad")
    assert answer.status_code == 404
    assert "unknown sweep &#39;mad&#39;. Did you mean &#39;made&#39;?" in answer.text
    assert client(disk).get("/nothing").status_code == 404


@pytest.mark.parametrize("kind", ["record", "history", "plan", "folder", "link", "unforeseen", "layout"])
def test_no_damage_is_an_error_of_the_server(disk, kind, monkeypatch):
    record = disk.path(f"trials/{FIRST}/record.json")
    history = disk.path(f"trials/{SECOND}/history.jsonl")
    file = disk.path("sweeps/made/plan.json")
    if kind == "record":
        damage(record)
    elif kind == "history":
        history.write_bytes(b"\xff\xfe{" + history.read_bytes())
    elif kind == "plan":
        file.write_bytes(file.read_bytes()[:-5])
    elif kind == "folder":
        record.unlink()
        record.mkdir()
    elif kind == "link":
        history.unlink()
        history.symlink_to(history)
    elif kind == "layout":
        file.unlink()
    else:
        monkeypatch.setattr("pointsweep.serving.watch.build", lambda *args: 1 / 0)
    found = client(disk)
    for path in ("/", "/sweeps/made", "/sweeps/made/report"):
        assert found.get(path).status_code == 200, path
    assert events(disk, "/sweeps/made/events")[0][0] == "state"


def test_text_of_a_store_never_becomes_html(disk):
    plan(disk, title=EVIL)
    fail(disk, THIRD, EVIL)
    for path in ("/", "/sweeps/made", "/sweeps/made/report", f"/sweeps/{EVIL}"):
        assert EVIL not in client(disk).get(path).text
    assert "&lt;script&gt;" in client(disk).get("/sweeps/made").text


def test_every_answer_has_the_headers_that_keep_a_browser_in_bounds(disk):
    for path in ("/", "/sweeps/made", "/sweeps/made/report", "/nothing", "/assets/live.js"):
        headers = client(disk).get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    policy = client(disk).get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_pages_load_nothing_from_elsewhere(disk):
    found = client(disk)
    for path in ("/", "/sweeps/made"):
        page = found.get(path).text
        addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert addresses and all(address.startswith("/") and not address.startswith("//") for address in addresses)
        assert " style=" not in page and "onclick" not in page
    assert found.get("/assets/live.js").headers["content-type"].startswith("text/javascript")
    assert found.get("/assets/serve.css").headers["content-type"].startswith("text/css")


def test_plotly_is_a_file_of_its_own_that_a_browser_keeps(disk):
    found = client(disk)
    report = found.get("/sweeps/made/report").text
    [address] = re.findall(r'<script src="([^"]+)"', report)
    assert address == f"/assets/plotly-{get_plotlyjs_version()}.min.js"
    assert len(report) < 300_000 and " 'self'; img-src" in html.unescape(report)
    for encoding, packed in (("identity", False), ("gzip", True)):
        answer = found.get(address, headers={"Accept-Encoding": encoding})
        assert answer.text == get_plotlyjs()
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["vary"] == "Accept-Encoding"
        assert ("content-encoding" in answer.headers) == packed
    assert int(answer.headers["content-length"]) < len(get_plotlyjs()) / 2
    assert found.get("/assets/plotly-0.0.0.min.js").status_code == 404


def test_a_report_travels_packed_to_who_takes_it_so(disk):
    found = client(disk)
    plain = found.get("/sweeps/made/report", headers={"Accept-Encoding": "identity"})
    packed = found.get("/sweeps/made/report", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert packed.text == plain.text


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_changed(disk, method):
    for path in ("/", "/sweeps/made", "/sweeps/made/report"):
        assert getattr(client(disk), method)(path).status_code == 405


def test_a_page_comes_without_its_content_where_the_store_is_slow(disk, monkeypatch):
    monkeypatch.setattr(module, "FIRST_LOOK_S", 0.0)
    found = client(disk)
    assert "The store is being read." in found.get("/").text
    assert "The sweep is being read." in client(disk).get("/sweeps/made").text


# Who may ask


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8270", "localhost:8270", "[::1]:8270", "LOCALHOST", "127.8.9.1"])
def test_without_a_token_names_of_this_machine_are_answered(disk, host):
    assert client(disk).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8270", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost.evil.example"]
)
def test_without_a_token_another_name_is_refused(disk, host):
    """A page of another site whose name is made to lead to this machine (DNS rebinding)."""
    for path in ("/", "/sweeps/made/report", "/events"):
        answer = client(disk).get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert "made" not in answer.text


def test_with_a_token_only_who_has_it_is_answered(disk):
    found = client(disk, Access(TOKEN), "http://node-3:8270")
    for path in ("/", "/events", "/sweeps/made", "/sweeps/made/report", "/sweeps/made/events"):
        for address in (path, f"{path}?token=wrong", f"{path}?token=", f"{path}?token=%C3%A4"):
            answer = found.get(address)
            assert answer.status_code == 401
            assert "made" not in answer.text and TOKEN not in answer.text
        headers = {"Authorization": "Bearer wrong", "Cookie": "pointsweep-serve=wrong"}
        assert found.get(path, headers=headers).status_code == 401
    assert found.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_an_address_with_the_token_opens_the_page_without_it(disk):
    found = client(disk, Access(TOKEN), "http://node-3:8270")
    answer = found.get(f"/sweeps/made?token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sweeps/made")
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie and "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
    assert found.get("/sweeps/made").status_code == 200, "the browser has a ticket now"
    assert found.get("/sweeps/made/report").status_code == 200
    assert TOKEN not in found.get("/sweeps/made").text
    other = client(disk, Access("another-token-of-it"), "http://node-3:8270")
    other.cookies = found.cookies
    assert other.get("/sweeps/made").status_code == 401, "a ticket is of one token"


def test_a_token_leads_to_no_other_host(disk):
    answer = client(disk, Access(TOKEN)).get(f"//evil.example/x?token={TOKEN}", follow_redirects=False)
    assert not answer.headers.get("location", "/").startswith("//")

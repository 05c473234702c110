"""Records of every version are read; layouts go through JSON unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointsweep.config.backbones import BackboneConfig
from pointsweep.config.tokenizers import PointPNLightConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import RecordError
from pointsweep.results.records import CellLayout, Layout, Published, from_json, layout_from_json
from pointsweep.results.working_copy import Copy, work_folder
from pointsweep.storage.s3 import S3Store
from tests.support.s3 import BUCKET, served

KEY = "0123456789abcdef"
STORED = Path(__file__).parent / "stored" / "record_v1.json"


def test_a_stored_record_of_version_1_is_read_and_has_kept_its_key(monkeypatch):
    """The file was written by version 0.1.0 and is never changed: neither the reader nor the key of its config may break it.

    But for a component whose code has given other numbers since: its revision is in the key, so that the trial runs again.
    """
    for component in (PointPNLightConfig, BackboneConfig):
        monkeypatch.setattr(component, "code_revision", 1)
    record = from_json(STORED.read_text())
    assert record.schema == 1
    assert record.metrics["last"]["test/accuracy"] == 0.5
    assert trial_from_dict(record.config).key() == record.key == STORED.with_suffix(".key").read_text().strip()


def test_a_record_goes_through_json_unchanged():
    record = from_json(STORED.read_text())
    assert from_json(record.to_json()) == record


def test_unknown_fields_of_the_same_schema_are_dropped():
    data = json.loads(STORED.read_text()) | {"later": 1}
    assert from_json(json.dumps(data)) == from_json(STORED.read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"schema": 99}', "record of schema 99, this version reads up to 2"), ("[]", "not a record"), ("{}", "not a record")],
)
def test_what_is_no_record_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_a_layout_goes_through_json_unchanged():
    cells = (
        CellLayout(0, 0, ((0, "k0"), (1, "k1")), Published(91.9, None, "Paper, Table 1")),
        CellLayout(0, 1, (), excluded="why"),
    )
    layout = Layout("n", "t", ("method",), (("lora",),), ("a", "b"), cells, protocol="best_test", notes=("x",))
    assert layout_from_json(layout.to_json()) == layout
    with pytest.raises(ValueError, match="not a layout"):
        layout_from_json("{}")


def test_a_damaged_record_on_s3_is_moved_to_another_name_with_what_belongs_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path))
    files = {"record.json": b"{", "history.jsonl": b"h", "predictions.npz": b"p", "weights.safetensors": b"w"}
    with served():
        store = S3Store(f"s3://{BUCKET}/{tmp_path.name}")
        for name, data in files.items():
            store.write(f"trials/{KEY}/{name}", data)
        copy = Copy(store, work_folder(store, KEY))
        with pytest.raises(RecordError, match="not a record"):
            copy.record()
        copy.set_record_aside()
        assert copy.record() is None
        for name, data in files.items():
            assert store.read(f"trials/{KEY}/{name}.damaged-1") == data
        assert store.exists(f"trials/{KEY}/history.jsonl"), "a copy of it was moved, as the trial goes on with it"

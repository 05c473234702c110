"""Event files of a trained sweep, as TensorBoard itself reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from pointsweep.cli import report
from pointsweep.reporting.build import read
from pointsweep.results.events import epochs_of, read_events
from pointsweep.storage.base import FileStore


def read_back(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.fixture
def written(trained, tmp_path, capsys) -> Path:
    folder = tmp_path / "runs"
    assert report.main(["tiny", "--store", str(trained), "--tensorboard", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: 4 trials\n"
    return folder


def test_every_trial_has_its_epochs_and_its_settings(trained, written):
    store = FileStore(trained)
    layout, records, _ = read(store, "tiny")
    folders = sorted(path.parent for path in written.rglob("events.out.tfevents.*"))
    assert len(folders) == len(records) > 1
    for cell in layout.cells:
        for seed, key in cell.keys:
            found = read_back(written / " ".join(layout.rows[cell.row]) / layout.columns[cell.column] / f"seed {seed}")
            epochs = epochs_of(read_events(store, key))
            scalars = [(event.step, event.value, event.wall_time) for event in found.Scalars(layout.metric)]
            wanted = [
                (epoch["epoch"], pytest.approx(epoch["metrics"][layout.metric]), pytest.approx(epoch["time"])) for epoch in epochs
            ]
            assert scalars == wanted
            assert [event.value for event in found.Scalars("lr")] == [pytest.approx(epoch["lr"]) for epoch in epochs]
            [result] = found.Scalars(f"result/{layout.metric}")
            assert result.value == pytest.approx(records[key].metrics[layout.protocol][layout.metric])
            started = found.summary_metadata[hparams.SESSION_START_INFO_TAG].plugin_data.content
            settings = hparams.parse_session_start_info_plugin_data(started).hparams
            assert settings["row"].string_value == " ".join(layout.rows[cell.row])
            assert settings["seed"].string_value == str(seed)


def test_again_it_replaces_them_and_touches_nothing_else(trained, written, capsys):
    before = sorted(path.parent for path in written.rglob("events.out.tfevents.*"))
    assert report.main(["tiny", "--store", str(trained), "--tensorboard", str(written)]) == 0
    assert sorted(path.parent for path in written.rglob("events.out.tfevents.*")) == before
    notes = before[0] / "notes.txt"
    notes.write_text("mine")
    assert report.main(["tiny", "--store", str(trained), "--tensorboard", str(written)]) == 2
    assert "holds notes.txt, which is no event file" in capsys.readouterr().err
    assert notes.read_text() == "mine"


def test_a_sweep_that_is_not_there_is_named(trained, capsys):
    assert report.main(["tinny", "--store", str(trained), "--tensorboard", str(trained / "x")]) == 2
    assert "Did you mean 'tiny'?" in capsys.readouterr().err

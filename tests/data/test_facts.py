"""What is said of a data set without training on it agrees with the data set itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pointsweep.data import facts
from pointsweep.data.facts import DataFacts, facts_of, marks, overlaps, refusals
from tests.data.made import clouds, config, dataset, write_modelnet, write_scanobjectnn


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "fields",
    [{}, {"val_fraction": 0.3}, {"train_limit": 33, "test_limit": 7}, {"train_limit": 50, "val_fraction": 0.2}],
)
@pytest.mark.parametrize("name", ["synthetic", "synthetic_parts"])
def test_what_a_made_set_will_hold_is_known_without_making_it(root, name, fields):
    small = {"train_per_class": 6, "test_per_class": 3} if name == "synthetic" else {"train_per_category": 15, "test_per_category": 5}
    asked = config(name, num_points=32, presample=32, source_points=64, **small, **fields)
    found, made = facts_of(asked), dataset(name, num_points=32, presample=32, source_points=64, **small, **fields)
    sizes = {"train": len(made.train.labels), "test": len(made.test.labels)}
    if made.val is not None:
        sizes["val"] = len(made.val.labels)
    assert found.sizes == sizes
    assert found.taken == made.num_taken


def test_a_corruption_is_not_made_for_a_look_and_its_digest_is_that_of_the_trials(root):
    write_modelnet(root / "modelnet40_ply_hdf5_2048", 2, 1, 1024)
    asked = config("modelnet40_c", num_points=64, presample=64, min_points=32, corruption="jitter", severity=2)
    look = facts_of(asked)
    assert look.digest == ""
    assert look.sizes == {"train": 80, "test": 40}
    assert not list((root / "cache").glob("corrupted-*"))
    made = dataset("modelnet40_c", num_points=64, presample=64, min_points=32, corruption="jitter", severity=2)
    assert facts_of(asked, digest=True).digest == made.digest


def test_clouds_of_too_few_points_for_a_corruption_are_refused_at_the_look(root):
    write_modelnet(root / "modelnet40_ply_hdf5_2048", 2, 1, 64)
    asked = config("modelnet40_c", num_points=64, presample=64, min_points=32, corruption="jitter", severity=2)
    with pytest.raises(facts.UnreadableDataError, match="corruptions need clouds of 1024 points, these have 64"):
        facts_of(asked)


def test_a_variant_without_a_published_size_is_no_part_of_one(root):
    folder = write_scanobjectnn(root / "scanobjectnn")
    stored = folder / "main_split"
    for split in ("training", "test"):
        source = stored / f"{split}_objectdataset_augmentedrot_scale75.h5"
        (stored / f"{split}_objectdataset_augmentedrot.h5").write_bytes(source.read_bytes())
    known = config("scanobjectnn")
    assert "part of the set: 15 of 2,882 test objects" in marks(facts_of(known), known, trains=True)
    unknown = config("scanobjectnn", variant="pb_t50_r")
    assert not [mark for mark in marks(facts_of(unknown), unknown, trains=True) if "of the set" in mark]


def test_more_objects_than_were_published_are_another_set():
    found = DataFacts(taken={"test": 2500}, published={"test": [2468]})
    assert marks(found, config("modelnet40"), trains=False) == ("another set: 2,500 test objects, published 2,468",)


def test_of_shapes_of_different_sizes_more_points_are_drawn_than_the_small_ones_have():
    found = DataFacts(sizes={"train": 10}, fewest_points={}, most_points={"train": 600, "test": 500})
    parts = config("synthetic_parts", num_points=512, presample=512)
    assert refusals(found, parts, batch=10) == []
    [text] = refusals(found, config("synthetic_parts", num_points=601, presample=601, source_points=700), batch=None)
    assert "have 600 points: at most 600" in text


def test_test_clouds_that_are_validation_clouds_are_named():
    found = DataFacts(sizes={"test": 1000, "val": 20}, shared={"test": 0, "val": 3, "both": 2})
    assert overlaps(found) == ["3 of 20 validation clouds are training clouds", "2 of 1,000 test clouds are validation clouds"]


def test_a_stamp_changes_with_what_lies_below_a_folder_and_a_link_that_leads_back_does_no_harm(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "back").symlink_to(tmp_path)
    (tmp_path / "inner" / "gone").symlink_to(tmp_path / "nowhere")
    stamps = [facts.folder_stamp(tmp_path)]
    np.save(tmp_path / "inner" / "a.npy", clouds(1, 8))
    stamps.append(facts.folder_stamp(tmp_path))
    np.save(tmp_path / "inner" / "a.npy", clouds(2, 8))
    stamps.append(facts.folder_stamp(tmp_path))
    (tmp_path / "inner" / "a.npy").rename(tmp_path / "inner" / "b.npy")
    stamps.append(facts.folder_stamp(tmp_path))
    assert len(set(stamps)) == 4
    assert facts.folder_stamp(tmp_path) == stamps[-1]


def test_a_stamp_takes_names_that_are_no_utf8(tmp_path):
    stamp = facts.folder_stamp(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.npy")).touch()
    assert facts.folder_stamp(tmp_path) != stamp

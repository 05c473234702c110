"""Clouds of one object: they are never in two splits, and where it is not known which they are it is said."""

from __future__ import annotations

import numpy as np
import pytest

from pointsweep.data import facts, scanobjectnn
from pointsweep.data.splits import hold_out
from tests.data.made import config, dataset, write_h5

COPIES = 5


def turned(cloud: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A copy of a cloud as in the perturbed variants: about the vertical axis, another scale, fewer of its points."""
    angle = generator.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    kept = np.sort(generator.choice(len(cloud), 256, replace=False))
    return (generator.uniform(0.9, 1.1) * cloud[kept] @ turn).astype(np.float32)


def perturbed(num_objects: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects of random extents, five copies of each one after another, and their labels."""
    generator = np.random.default_rng(seed)
    points = []
    for _ in range(num_objects):
        extents = generator.uniform(0.3, 2.0, size=3)
        own = generator.normal(size=(400, 3)) * extents
        points += [turned(own, generator) for _ in range(COPIES)]
    return np.stack(points), np.repeat(np.arange(num_objects) % 15, COPIES)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(root, variant: str = "pb_t50_rs", order: np.random.Generator | None = None) -> dict[str, np.ndarray]:
    """An imitation of a variant's files; the objects of each split in the order of the file."""
    objects = {}
    for number, (split, files) in enumerate(scanobjectnn.candidates(root / "scanobjectnn", variant).items()):
        points, labels = perturbed(45, number)
        rows = np.arange(len(labels)) if order is None else order.permutation(len(labels))
        write_h5(files[0], points[rows], labels[rows])
        objects[split] = (rows // COPIES) + 1000 * number
    return objects


def write_objects(root, objects: dict[str, np.ndarray], variant: str = "pb_t50_rs") -> None:
    for split, files in scanobjectnn.candidates(root / "scanobjectnn", variant).items():
        path = files[0].with_name(f"{files[0].stem}_objects.txt")
        path.write_text("".join(f"scene_{number}\n" for number in objects[split]))


def options(**fields):
    return config("scanobjectnn", num_points=64, presample=64, **fields)


@pytest.mark.parametrize("variant", list(scanobjectnn.VARIANTS))
def test_a_validation_split_shares_no_object_with_training(root, variant):
    objects = write(root, variant, np.random.default_rng(1))
    write_objects(root, objects, variant)
    asked = options(variant=variant, val_fraction=0.2)
    made = dataset("scanobjectnn", num_points=64, presample=64, variant=variant, val_fraction=0.2)
    kept, held = objects["train"][made.train.index], objects["train"][made.val.index]
    assert not np.intersect1d(kept, held).size
    assert len(kept) + len(held) == 225
    assert set(made.val.labels.tolist()) == set(range(15))
    found = facts.facts_of(asked)
    assert found.shared_objects == {"test": 0, "val": 0, "both": 0}
    assert not [text for text in facts.refusals(found, asked, None) if "objects" in text]
    assert facts.COPIES_UNKNOWN not in facts.marks(found, asked, True)


def test_copies_in_a_row_are_objects_where_the_clouds_agree(root):
    write(root)
    made = dataset("scanobjectnn", num_points=64, presample=64, val_fraction=0.2, copies_in_a_row=COPIES)
    assert not np.intersect1d(made.train.index // COPIES, made.val.index // COPIES).size
    assert len(np.unique(made.test.groups)) == 45
    assert not np.intersect1d(made.test.groups, made.train.groups).size


def test_an_order_that_the_clouds_do_not_bear_out_is_refused(root):
    """Sorted by class, so that labels in a row agree, and otherwise in no order."""
    generator = np.random.default_rng(2)
    for number, files in enumerate(scanobjectnn.candidates(root / "scanobjectnn", "pb_t50_rs").values()):
        points, labels = perturbed(45, number)
        rows = np.lexsort((generator.random(len(labels)), labels))
        write_h5(files[0], points[rows], labels[rows])
    with pytest.raises(ValueError, match="train clouds in a row are no more alike than others of their class"):
        dataset("scanobjectnn", num_points=64, presample=64, copies_in_a_row=COPIES)


def test_a_row_of_several_classes_is_no_row_of_copies(root):
    write(root, order=np.random.default_rng(3))
    with pytest.raises(ValueError, match=r"copies_in_a_row: 5, but train clouds \d+ to \d+ are of different classes"):
        dataset("scanobjectnn", num_points=64, presample=64, copies_in_a_row=COPIES)


def test_the_real_files_are_in_no_such_order(data_root):
    """The first clouds of the published files are of other classes, one after another."""
    with pytest.raises(ValueError, match="train clouds 0 to 4 are of different classes"):
        dataset("scanobjectnn", folder="scanobjectnn_dev", copies_in_a_row=COPIES)


def test_validation_is_refused_where_nobody_knows_which_clouds_are_copies(root):
    write(root)
    asked = options(val_fraction=0.2)
    found = facts.facts_of(asked)
    refused = [text for text in facts.refusals(found, asked, None) if "copies" in text]
    assert len(refused) == 1
    assert "leave out dataset.val_fraction, take a variant with one cloud an object (obj_bg, obj_only)" in refused[0]
    allowed = asked.replace(allow_overlap=True)
    assert not facts.refusals(found, allowed, None)
    said = facts.marks(found, allowed, True)
    assert any("validation clouds may be of objects that have training clouds too" in text for text in said)
    assert facts.COPIES_UNKNOWN in said


def test_without_validation_the_table_says_that_the_unit_is_a_cloud(root):
    write(root)
    asked = options()
    found = facts.facts_of(asked)
    assert not facts.refusals(found, asked, None)
    assert facts.COPIES_UNKNOWN in facts.marks(found, asked, True)


def test_variants_with_one_cloud_an_object_have_nothing_to_say(root):
    for variant in scanobjectnn.ONE_CLOUD_AN_OBJECT:
        write(root, variant)
        asked = options(variant=variant, val_fraction=0.2)
        found = facts.facts_of(asked)
        assert not found.copies_unknown
        assert not facts.refusals(found, asked, None)


def test_an_object_in_training_and_test_is_refused(root):
    objects = write(root)
    objects["test"][:5] = objects["train"][0]
    write_objects(root, objects)
    asked = options()
    found = facts.facts_of(asked)
    (refused,) = facts.refusals(found, asked, None)
    assert "5 of 225 test clouds are of objects that have training clouds too: mend the data, or the files" in refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers: numbers[:-1], "objects of 224 train clouds are given, the split has 225"),
        (lambda numbers: np.full_like(numbers, 1), "train clouds .* are given as one object and have different labels"),
    ],
)
def test_files_of_objects_are_checked(root, change, message):
    objects = write(root)
    objects["train"] = change(objects["train"])
    write_objects(root, objects)
    with pytest.raises(ValueError, match=message):
        dataset("scanobjectnn", num_points=64, presample=64)


def test_one_file_of_objects_is_not_enough(root):
    write_objects(root, write(root))
    next((root / "scanobjectnn").glob("*/test*_objects.txt")).unlink()
    with pytest.raises(ValueError, match=r"training_.*_objects.txt says which clouds are of one object, .*test_.* is not there"):
        dataset("scanobjectnn", num_points=64, presample=64)


def test_splits_without_groups_are_those_that_they_were():
    """Stored trials with a validation split keep it: a class of ten gives the first two of a fixed permutation."""
    labels = np.repeat(np.arange(3), 10)
    _, held = hold_out(labels, 0.2)
    generator = np.random.default_rng(0)
    expected = [generator.permutation(np.flatnonzero(labels == label))[:2] for label in range(3)]
    assert sorted(held.tolist()) == sorted(np.concatenate(expected).tolist())


def test_the_plan_counts_objects_and_not_their_clouds(root):
    from pointsweep.planning.design_power import num_test
    from pointsweep.planning.plan import make_plan
    from pointsweep.storage.base import FileStore
    from pointsweep.sweep.sweep import load

    write_objects(root, write(root))
    path = root / "t.yaml"
    path.write_text(
        "name: t\nbase:\n  dataset: {name: scanobjectnn, num_points: 64, presample: 64}\n"
        "  tokenizer: {name: point_pn_light, num_tokens: 6, neighbours: 6}\n  backbone: {name: tiny}\n"
        "  train: {epochs: 1, batch_size: 16, warmup_epochs: 0}\nrows: {method: [head_only]}\n"
    )
    sweep = load(path)
    plan = make_plan(sweep, FileStore(root / "store"))
    assert not plan.refused
    assert num_test(sweep.cells[0], plan) == 45

"""Data folders as people have them: links, loops, names that are almost right, archives, folders too deep or too high."""

from __future__ import annotations

import pytest

from pointsweep.cli.data import NOTHING, SOUND, WRONG, main
from pointsweep.errors import MissingDataError
from tests.data.made import dataset, write_modelnet, write_scanobjectnn, write_shapenetpart
from tests.data.test_shapenetpart import SHAPES

NAME = "modelnet40_ply_hdf5_2048"


def said(capsys, root, *more) -> tuple[int, str]:
    code = main([str(root), "--allow-parts", *more])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def elsewhere(tmp_path):
    return write_modelnet(tmp_path / "elsewhere" / "modelnet", 1, 1, 12)


def test_a_linked_set_is_read_by_both(tmp_path, monkeypatch, capsys, elsewhere):
    root = tmp_path / "root"
    root.mkdir()
    (root / NAME).symlink_to(elsewhere)
    monkeypatch.setenv("POINTSWEEP_DATA", str(root))
    assert len(dataset("modelnet40").train.labels) == 40
    code, text = said(capsys, root)
    assert code == SOUND
    assert f"  {NAME}\n    train 40, test 40" in text


def test_a_root_that_is_a_link_is_read_by_both(tmp_path, monkeypatch, capsys, elsewhere):
    elsewhere.rename(elsewhere.with_name(NAME))
    (tmp_path / "root").symlink_to(elsewhere.parent)
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / "root"))
    assert len(dataset("modelnet40").train.labels) == 40
    assert said(capsys, tmp_path / "root")[0] == SOUND


def test_linked_files_and_folders_inside_sets_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    scans = write_scanobjectnn(tmp_path / "disk" / "scans")
    (tmp_path / "scanobjectnn").mkdir()
    (tmp_path / "scanobjectnn" / "h5_files").symlink_to(scans)
    assert len(dataset("scanobjectnn").train.labels) == 15
    parts = write_shapenetpart(tmp_path / "disk" / "parts", SHAPES)
    (tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal").mkdir()
    for path in parts.iterdir():
        (tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal" / path.name).symlink_to(path)
    assert len(dataset("shapenetpart").test.labels) == len(SHAPES["test"])


def test_a_link_in_a_circle_ends_and_counts_once(tmp_path, capsys):
    folder = write_modelnet(tmp_path / "root" / NAME, 1, 1, 12)
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root")
    (folder / "up").symlink_to(tmp_path / "root")
    (folder / "itself").symlink_to(folder / "itself")
    code, text = said(capsys, tmp_path / "root")
    assert code == SOUND
    assert "1 sound, 0 wrong" in text


def test_a_link_that_leads_nowhere_is_called_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    (tmp_path / NAME).symlink_to(tmp_path / "gone")
    with pytest.raises(MissingDataError, match=f"a broken link .*{NAME}"):
        dataset("modelnet40")
    code, text = said(capsys, tmp_path)
    assert code == NOTHING
    assert f"{NAME}: a link that leads nowhere" in text


@pytest.mark.parametrize("folder", ["../root", "/tmp", "a/../../b", ".."])
def test_a_name_that_leads_out_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match="leads out of POINTSWEEP_DATA"):
        dataset("modelnet40", folder=folder)


def test_a_misspelt_folder_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write_modelnet(tmp_path / NAME, 1, 1, 12)
    with pytest.raises(MissingDataError, match=f"no folder .*modelnet40_hdf5_2048.* Did you mean '{NAME}'"):
        dataset("modelnet40", folder="modelnet40_hdf5_2048")


UNREAD = {
    "meshes": (["my_objects/chair_0001.off"], "my_objects/: no layout of a known set; it holds chair_0001.off"),
    "an empty folder": (["empty/"], "empty/: no layout of a known set; it holds nothing"),
    "an archive": (["modelnet40.zip"], "modelnet40.zip: an archive; unpack it"),
    "an archive in a folder": (["modelnet/modelnet40.tar.gz"], "modelnet/: holds modelnet40.tar.gz; unpack it"),
    "a misspelt folder": (["scan/main-split/training_objectdataset.h5"], "should 'main-split' be called 'main_split'?"),
    "a misspelt file": (["modelnet/train_file.txt"], "should 'train_file.txt' be called 'train_files.txt'?"),
    "too deep": ([f"a/b/c/{NAME}/train_files.txt"], f"train_files.txt lies at a/b/c/{NAME}, too deep to be found; give"),
    "loose files": (["chair.off", "table.off"], "chair.off, table.off: loose files"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_read_is_named_and_a_root_without_a_set_is_an_error(tmp_path, capsys, case):
    paths, words = UNREAD[case]
    for path in paths:
        if path.endswith("/"):
            (tmp_path / path).mkdir()
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
    code, text = said(capsys, tmp_path)
    assert code == NOTHING
    assert words in text
    assert f"no data set found in {tmp_path}" in text


def test_an_empty_root_is_an_error(tmp_path, capsys):
    code, text = said(capsys, tmp_path)
    assert code == NOTHING
    assert "no data set found" in text


def test_a_root_inside_a_set_is_answered_with_the_folder_above(tmp_path, capsys):
    write_scanobjectnn(tmp_path / "root" / "scanobjectnn" / "h5_files")
    for inner in ("root/scanobjectnn/h5_files/main_split", "root/scanobjectnn/h5_files"):
        _, text = said(capsys, tmp_path / inner)
        if inner.endswith("main_split"):
            assert f"this folder is the inside of a data set; give {tmp_path / 'root'} instead" in text
        else:
            assert "1 sound, 0 wrong" in text


def test_what_lies_beside_a_set_is_named_too(tmp_path, capsys):
    write_modelnet(tmp_path / NAME, 1, 1, 12)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "mine").mkdir()
    code, text = said(capsys, tmp_path)
    assert code == SOUND
    assert "not read:\n  mine/: no layout of a known set; it holds nothing\n  notes.txt: loose files\n" in text


def test_a_damaged_set_is_wrong_and_not_absent(tmp_path, capsys):
    folder = write_modelnet(tmp_path / NAME, 1, 1, 12)
    (folder / "ply_data_test0.h5").write_bytes(b"\x89HDF")
    assert said(capsys, tmp_path)[0] == WRONG

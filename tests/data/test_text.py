"""Text files of other programs and systems: read to the same numbers, or refused by file and line."""

from __future__ import annotations

import codecs
import json

import numpy as np
import pytest

from pointsweep.cli.data import WRONG, main
from pointsweep.data.modelnet40 import CLASSES
from pointsweep.data.readers.text import decode, last_part, lines_of, number_rows
from tests.data.made import clouds, dataset, rows, write_h5, write_modelnet, write_scanobjectnn, write_shapenetpart

NUMBERS = [[0.5, -1.25, 2.0, 0.0, 1.0, 0.0], [1.5, 2e-3, -3.0, 0.0, 0.0, 1.0]]
POINTS = "0.5,-1.25,2.0,0,1,0\n1.5,2e-3,-3,0,0,1\n"

SAME = {
    "plain": POINTS,
    "windows": POINTS.replace("\n", "\r\n"),
    "old mac": POINTS.replace("\n", "\r"),
    "no last line end": POINTS.rstrip(),
    "empty lines": "\n\n" + POINTS.replace("\n", "\n  \n"),
    "blanks": " 0.5, -1.25, 2.0, 0, 1, 0 \n1.5 ,2e-3 ,-3 ,0 ,0 ,1\n",
    "tabs": POINTS.replace(",", "\t"),
    "semicolons": POINTS.replace(",", ";"),
    "semicolons and decimal commas": POINTS.replace(",", ";").replace(".", ","),
    "blanks and decimal commas": POINTS.replace(",", " ").replace(".", ","),
    "capital exponent": POINTS.replace("e", "E"),
    "header": "x,y,z,nx,ny,nz\n" + POINTS,
}


@pytest.mark.parametrize("form", SAME)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_forms_that_mean_one_thing_are_read(form, mark):
    found = number_rows(decode(mark + SAME[form].encode(), "FILE"), "FILE", (3, 6))
    assert found.tolist() == NUMBERS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (POINTS.replace(".", ","), "FILE, line 1: "),
        ("0,5,-1,25,2,0\n1,5,0,2,3,0\n", "FILE, line 1: whole numbers alone, separated by commas"),
        ("1.5,2,3\n1.5,2,3\n1.5,2\n", "FILE, line 3: 2 columns, but 3 in line 1: '1.5,2'"),
        ("1.5,2,3\n\n1.5,2,3,4\n", "FILE, line 3: 4 columns, but 3 in line 1"),
        ("1.5 2 3 4\n", "FILE, line 1: 4 columns, 3 or 6 are expected: '1.5 2 3 4'"),
        ("1.5,2,3\n# 1.5,2,3\n1.5,2,3\n", "FILE, line 2: not a row of numbers: '# 1.5,2,3'"),
        ("2048\n1.5 2 3\n", "FILE, line 1: 1 columns, 3 or 6 are expected"),
        ("nx,ny,nz,x,y,z\n" + POINTS, "FILE, line 1: not a row of numbers: 'nx,ny,nz,x,y,z'"),
        ("point cloud\n" + POINTS, "FILE, line 1: not a row of numbers: 'point cloud'"),
        ("1.5,2,x\n", "FILE, line 1: not a row of numbers: '1.5,2,x'"),
        ("1.5,,3\n", "FILE, line 1: not a row of numbers: '1.5,,3'"),
        ("1.5,2,3,\n", "FILE, line 1: not a row of numbers"),
        ("1_000.5,2,3\n", "FILE, line 1: not a row of numbers"),
        ("1.5,2 3,4\n", "FILE, line 1: "),
        ("", "FILE: holds no row of numbers; rows of 3 or 6 numbers are expected"),
        ("\n \n", "FILE: holds no row of numbers"),
        ("x,y,z\n", "FILE: holds no row of numbers"),
    ],
)
def test_what_may_mean_several_things_is_refused_by_file_and_line(text, message):
    with pytest.raises(ValueError) as error:
        number_rows(text, "FILE", (3, 6))
    assert message in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_by_name(encoding):
    with pytest.raises(ValueError, match="FILE: is UTF-16 or no text at all; save it as UTF-8"):
        decode(POINTS.encode(encoding), "FILE")


def test_latin_1_is_refused_by_file_and_line():
    with pytest.raises(ValueError, match="FILE, line 3: byte 0xfc is not UTF-8"):
        decode("chair\ntable\nTür\n".encode("latin-1"), "FILE")


def test_names_are_lines_and_paths_of_either_system():
    assert lines_of(decode(b"\xef\xbb\xbfa b \r\n\r\n c\t\n", "FILE")) == ["a b", "c"]
    assert {last_part(name) for name in ("data/x/a b.h5", "D:\\data\\x\\a b.h5", "a b.h5", "/data/a b.h5")} == {"a b.h5"}


def windows(folder, pattern: str) -> None:
    """Rewrites text files as a Windows editor saves them."""
    for path in folder.glob(pattern):
        text = path.read_text().replace("/", "\\").replace("\n", " \r\n")
        path.write_bytes(codecs.BOM_UTF8 + text.encode())


def test_hdf5_lists_from_windows_give_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write_modelnet(tmp_path / "linux", 1, 1, 12)
    folder = write_modelnet(tmp_path / "windows", 1, 1, 12)
    (folder / "ply_data_test0.h5").rename(folder / "ply data test0.h5")
    (folder / "test_files.txt").write_text("my data/ply data test0.h5\n")
    windows(folder, "*.txt")
    assert dataset("modelnet40", folder="windows").digest == dataset("modelnet40", folder="linux").digest


def write_text_layout(folder):
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        cloud = clouds(1, 9, CLASSES.index(name))[0]
        np.savetxt(folder / name / f"{name}_0001.txt", cloud, fmt="%.6f", delimiter=",")
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES))
    for split in ("train", "test"):
        (folder / f"modelnet40_{split}.txt").write_text("".join(f"{name}_0001\n" for name in CLASSES))


def test_the_text_layout_from_windows_gives_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write_text_layout(tmp_path / "linux")
    write_text_layout(tmp_path / "windows")
    windows(tmp_path / "windows", "**/*.txt")
    assert dataset("modelnet40", folder="windows").digest == dataset("modelnet40", folder="linux").digest


def test_decimal_commas_in_one_file_are_refused_by_the_data_command(tmp_path, capsys):
    write_text_layout(tmp_path / "text")
    path = tmp_path / "text" / "airplane" / "airplane_0001.txt"
    path.write_text(path.read_text().replace(".", ",").replace("\n", ",0,000000,0,000000,0,000000\n"))
    assert main([str(tmp_path), "--allow-parts"]) == WRONG
    assert f"wrong: {path}, line 1: 12 columns, 3 or 6 are expected" in capsys.readouterr().out


def test_a_file_with_other_columns_than_the_first_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write_text_layout(tmp_path / "text")
    path = tmp_path / "text" / "bed" / "bed_0001.txt"
    np.savetxt(path, rows(9, [0])[:, :6], delimiter=",")
    with pytest.raises(ValueError, match=r"bed_0001\.txt, line 1: 6 columns, 3 are expected"):
        dataset("modelnet40", folder="text")


def test_part_lists_from_windows_give_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    shapes = {"train": {"Airplane/a": rows(9, [0, 1])}, "val": {"Mug/v": rows(8, [37], 2)}, "test": {"Mug/t": rows(8, [36], 3)}}
    for name in ("linux", "windows"):
        write_shapenetpart(tmp_path / name, shapes)
    windows(tmp_path / "windows", "synset*.txt")
    windows(tmp_path / "windows", "*/*.txt")
    for path in (tmp_path / "windows" / "train_test_split").iterdir():
        entries = [entry.replace("/", "\\") for entry in json.loads(path.read_text())]
        path.write_bytes(codecs.BOM_UTF8 + json.dumps(entries).encode())
    assert dataset("shapenetpart", folder="windows").digest == dataset("shapenetpart", folder="linux").digest


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_class_names_in_another_encoding_are_refused_by_file(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    folder = write_scanobjectnn(tmp_path / "scanobjectnn")
    (folder / "shape_names.txt").write_bytes("bag\nbin\nTür\n".encode(encoding))
    with pytest.raises(ValueError, match=r"shape_names\.txt.*save (it|the file) as UTF-8"):
        dataset("scanobjectnn")


def test_a_mark_before_the_class_names_is_no_part_of_a_name(tmp_path, capsys):
    folder = write_modelnet(tmp_path / "set", 1, 1, 12)
    (folder / "shape_names.txt").write_bytes(codecs.BOM_UTF8 + "\r\n".join(CLASSES).encode() + b"  \r\n\r\n")
    write_h5(folder / "ply_data_test0.h5", clouds(40, 12, 5), np.arange(40))
    main([str(tmp_path), "--allow-parts"])
    assert "1 sound, 0 wrong" in capsys.readouterr().out


@pytest.mark.parametrize("header", ["# x y z", "//X Y Z", "#x,y,z", "x y z"])
def test_a_first_line_that_names_the_coordinates_is_left_out(header):
    assert number_rows(f"{header}\n1.5 2 3\n4 5 6\n", "file", (3, 6)).tolist() == [[1.5, 2, 3], [4, 5, 6]]


def test_another_comment_is_refused():
    with pytest.raises(ValueError, match="file, line 1: not a row of numbers: '# made by me'; 3 to 12 columns are expected"):
        number_rows("# made by me\n1 2 3\n", "file", tuple(range(3, 13)))

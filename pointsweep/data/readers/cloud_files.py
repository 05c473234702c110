"""Readers of files that hold one cloud each: text, npy, npz, PLY, PCD, LAS, and meshes (OFF, OBJ,
STL, PLY), which are sampled on their surface.

Other formats than text, npy and npz are read by maintained libraries: trimesh, plyfile, pypcd4,
laspy. They come with `pip install "pointsweep[files]"`.

Letters: P points.
"""

from __future__ import annotations

import importlib
import itertools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pointsweep.data.readers.clouds import MIN_POINTS, faults
from pointsweep.data.readers.features import from_columns, from_fields, joined
from pointsweep.data.readers.text import SHOWN, number_rows, read_text
from pointsweep.errors import MissingDataError

# numbers of columns that a text file may have: x, y, z, and up to nine features
COLUMNS = tuple(range(3, 13))
# names of the property of a PLY face that lists its corners
VERTEX_INDICES = ("vertex_indices", "vertex_index")
# usual names of the array of points in an npz or HDF5 file, in lower case
POINT_KEYS = (
    "points",
    "point",
    "data",
    "xyz",
    "pc",
    "pos",
    "coords",
    "clouds",
    "cloud",
    "pcd",
    "pcs",
    "point_cloud",
    "point_clouds",
    "pointcloud",
    "pointclouds",
)
# fixed, so that the same mesh gives the same points in every data set and run
MESH_SEED = 0
# Exceptions that a damaged file may raise in the libraries that read it.
DAMAGED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    ArithmeticError,
    OSError,
)


def read_cloud(
    path: Path,
    mesh_points: int,
    points_key: str | None = None,
    features: tuple[str, ...] = (),
) -> np.ndarray:
    """Return the points (P, 3) of a file with the dtype that it stores; for a mesh `mesh_points`
    samples of its surface. Columns of `features` follow the coordinates (P, 3 + F).

    Raises MissingDataError without the library that reads the format, ValueError naming the file
    and what is wrong with it.
    """
    suffix = path.suffix.lower()
    if suffix in READERS:
        # These readers append the requested features themselves; the others return all columns.
        points = READERS[suffix](path, mesh_points, features)
        return checked_cloud(points, str(path))

    points = columns_of(path, points_key)
    return checked_cloud(points, str(path), features=features)


def checked_cloud(
    points: np.ndarray,
    source: str,
    number: int | None = None,
    features: tuple[str, ...] | None = None,
) -> np.ndarray:
    """Return a cloud (P, C) that is valid, with the columns of `features` after x, y, z, or with
    all its columns if `features` is None. Raises ValueError for a cloud that a model cannot learn
    from, and for a file without points.

    `number` is the index of the cloud in a file with several.
    """
    name = "the cloud" if number is None else f"cloud {number}"
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise ValueError(
            f"{source}: {name} must be float or whole numbers (P, 3 or more), found {points.dtype}"
            f" {points.shape}"
        )
    if len(points) < MIN_POINTS:
        raise ValueError(
            f"{source}: {name} has {len(points)} points, at least {MIN_POINTS} are needed"
        )

    # `faults` checks batches and counts clouds from 0; a file of one cloud does not number it.
    for message in faults(points[None, :, :3], number or 0):
        raise ValueError(f"{source}: {message.replace('cloud 0 ', f'{name} ', 1)}")

    if features is not None:
        points = from_columns(points, features, source)

    # `faults` has checked the coordinates, so this is about features.
    not_finite = np.argwhere(~np.isfinite(points))
    if len(not_finite):
        point, channel = not_finite[0]
        raise ValueError(
            f"{source}: {name} has a feature that is not finite: {points[point, channel]} at point"
            f" {point}"
        )

    return points


def columns_of(path: Path, points_key: str | None) -> np.ndarray:
    """Return all columns (P, C) of a text, npy or npz file as stored. Raises ValueError for a file
    that is not readable as its format.
    """
    if path.suffix.lower() in ROWS:
        return _read_rows(path)

    return _read_numpy(path, points_key)


def _read_rows(path: Path) -> np.ndarray:
    text = read_text(path)
    if path.suffix.lower() == ".pts":
        text = _without_count(text, path)

    return number_rows(text, str(path), COLUMNS)


def _without_count(text: str, path: Path) -> str:
    """Return the text with an empty line in place of the number of points that a .pts file may
    begin with.
    """
    first, _, rest = text.partition("\n")
    if not first.strip().isdecimal():
        return text

    num_rows = sum(bool(line.strip()) for line in rest.split("\n"))
    if num_rows != int(first):
        raise ValueError(
            f"{path}, line 1: announces {int(first)} points, {num_rows} lines follow:"
            f" {first.strip()[:SHOWN]!r}"
        )

    return "\n" + rest


def _read_numpy(path: Path, points_key: str | None) -> np.ndarray:
    """Return the array of a .npy file, or the array of points of a .npz file as `array_key` selects
    it. Raises ValueError naming the file.
    """
    try:
        content = np.load(path, allow_pickle=False)  # a pickle could run any code
        if isinstance(content, np.ndarray):
            return content

        # else an NpzFile, which reads an array when it is indexed
        with content:
            keys = dict.fromkeys(content.files)
            key = array_key(path, keys, points_key, POINT_KEYS, field="points_key")
            array: np.ndarray = content[key]
            return array
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        # `array_key` names the file itself, and the file is readable where it raises.
        if str(error).startswith(str(path)):
            raise

        raise ValueError(
            f"{path}: not a readable {path.suffix} file of numbers: {error}"
        ) from error


def array_key(
    path: Path,
    keys: Mapping[str, Any],
    requested: str | None,
    usual: tuple[str, ...],
    field: str,
) -> str:
    """Return the key of a file under which an array is stored: the requested one, else the only one
    with a usual name.

    `field` is the field of the dataset's configuration by which a user requests a key. Raises
    ValueError naming it and the file's keys if no key, or more than one, qualifies.
    """
    present = ", ".join(sorted(keys)) or "none"
    if requested is not None:
        if requested not in keys:
            raise ValueError(
                f"{path}: no key {requested!r}, which dataset.{field} names; keys: {present}"
            )

        return requested

    # A file's only array is that of the points, whatever its name; it is not one of labels.
    if len(keys) == 1 and field == "points_key":
        return next(iter(keys))

    named = [key for key in keys if key.lower() in usual]
    if len(named) == 1:
        return named[0]

    if named:
        reason = f"{' and '.join(named)} may both be meant"
    else:
        reason = f"none of the usual names ({', '.join(usual)})"

    raise ValueError(
        f"{path}: {reason}; set dataset.{field} to one of its keys: {present}"
    )


def _read_pcd(path: Path, mesh_points: int, features: tuple[str, ...]) -> np.ndarray:
    library = _library("pypcd4", path)
    try:
        cloud = library.PointCloud.from_path(path)
        missing = {"x", "y", "z"} - set(cloud.fields)
        if missing:
            raise ValueError(
                f"no field {', '.join(sorted(missing))}; fields: {', '.join(cloud.fields)}"
            )

        coordinates: np.ndarray = cloud.numpy(("x", "y", "z"))
        named = {field: cloud.pc_data[field] for field in cloud.fields}
        if "rgb" in named:
            colors = library.PointCloud.decode_rgb(np.ascontiguousarray(named["rgb"]))
            named |= dict(zip(("red", "green", "blue"), colors.T, strict=True))

        points = joined(coordinates, from_fields(features, named, named.__getitem__))
        announced = int(cloud.metadata.points)
    except DAMAGED as error:
        raise _damaged(path, "PCD", error) from error

    if len(points) != announced:
        raise ValueError(
            f"{path}: announces {announced} points and holds {len(points)}: cut off?"
        )

    # In a PCD file, NaN coordinates mark the pixels of a depth camera without a measurement.
    is_absent = np.isnan(coordinates).all(axis=1)
    return points[~is_absent]


def _read_ply(path: Path, mesh_points: int, features: tuple[str, ...]) -> np.ndarray:
    library = _library("plyfile", path)
    try:
        content = library.PlyData.read(str(path))
        vertex = content["vertex"]
        vertices = np.stack([vertex["x"], vertex["y"], vertex["z"]], axis=1)
        polygons = []

        for element in content:
            if element.name == "face" and len(element):
                names = [field.name for field in element.properties]
                name = next(name for name in names if name in VERTEX_INDICES)
                polygons = list(element[name])
    except (library.PlyParseError, StopIteration, *DAMAGED) as error:
        raise _damaged(path, "PLY", error) from error

    if not polygons:
        fields = [field.name for field in vertex.properties]
        try:
            columns = from_fields(features, fields, vertex.__getitem__)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

        return joined(vertices, columns)

    # Triangulate each polygon as a fan around its first corner.
    triangles = []
    for polygon in polygons:
        corners = [int(corner) for corner in polygon]
        for second, third in itertools.pairwise(corners[1:]):
            triangles.append((corners[0], second, third))

    faces = np.array(triangles, dtype=np.int64).reshape(-1, 3)
    return _sampled(path, vertices, faces, mesh_points, features)


def _read_las(path: Path, mesh_points: int, features: tuple[str, ...]) -> np.ndarray:
    library = _library("laspy", path)
    try:
        content = library.read(path)
        fields = list(content.point_format.dimension_names)
        columns = from_fields(
            features, fields, lambda field: np.asarray(content[field])
        )
        points = joined(np.asarray(content.xyz), columns)
    except (library.errors.LaspyException, *DAMAGED) as error:
        hint = ""
        if path.suffix.lower() == ".laz":
            hint = "; .laz needs a decompressor beside laspy: pip install lazrs"

        raise ValueError(f"{_damaged(path, 'LAS', error)}{hint}") from error

    return points


def _read_mesh(path: Path, mesh_points: int, features: tuple[str, ...]) -> np.ndarray:
    library = _library("trimesh", path)
    suffix = path.suffix.lower()
    # Materials of an OBJ file are files of their own, which a data set may lack.
    options = {"skip_materials": True} if suffix == ".obj" else {}

    try:
        # trimesh may accept an OFF file that is cut off
        if suffix == ".off":
            _check_off(path)

        # without `process`, which would merge vertices
        mesh = library.load_mesh(path, process=False, **options)
        vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    except DAMAGED as error:
        raise _damaged(path, f"{suffix[1:].upper()} mesh", error) from error

    if len(faces) == 0 and len(vertices) == 0:
        raise ValueError(f"{path}: holds no face; a mesh is sampled on its faces")
    if len(faces) == 0 and features:
        raise ValueError(f"{path}: holds no face, and so no {', '.join(features)}")
    if len(faces) == 0:
        return vertices

    return _sampled(path, vertices, faces, mesh_points, features)


def _check_off(path: Path) -> None:
    """Raise ValueError for an OFF file that has fewer lines than its header announces."""
    lines = []
    for line in read_text(path).split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)

    _, _, counts = " ".join(lines[:2]).upper().partition("OFF")
    header = counts.split()
    if len(header) < 2 or not (header[0].isdecimal() and header[1].isdecimal()):
        raise ValueError(
            "the header must be OFF and the numbers of vertices, faces and edges"
        )

    announced = int(header[0]) + int(header[1])
    # The counts follow the word OFF in its line (as ModelNet's files have it) or in the next one.
    num_header_lines = 2 if lines[0].strip().upper() == "OFF" else 1
    num_rows = len(lines) - num_header_lines

    if num_rows < announced:
        raise ValueError(
            f"announces {header[0]} vertices and {header[1]} faces, {num_rows} lines follow:"
            " cut off?"
        )


def _sampled(
    path: Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    count: int,
    features: tuple[str, ...],
) -> np.ndarray:
    """Return points (count, 3) drawn uniformly from a surface, the same ones at every reading.
    Where `features` asks for normals, those of the triangles follow (count, 6).
    """
    missing = [name for name in features if name != "normal"]
    if missing:
        raise ValueError(
            f"{path}: a mesh is sampled on its surface, of which normals alone are known;"
            f" dataset.features asks for {', '.join(missing)}"
        )

    if not np.isfinite(vertices).all():
        vertex, axis = np.argwhere(~np.isfinite(vertices))[0]
        raise ValueError(
            f"{path}: vertex {vertex} has a coordinate that is not finite: {vertices[vertex, axis]}"
        )

    if len(faces) == 0 or faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(
            f"{path}: faces must be of at least 3 of the {len(vertices)} vertices"
        )

    trimesh = _library("trimesh", path)
    mesh = trimesh.Trimesh(vertices.astype(np.float64), faces, process=False)
    if not mesh.area > 0:
        raise ValueError(f"{path}: the {len(faces)} triangles have no area")

    points, triangles = trimesh.sample.sample_surface(mesh, count, seed=MESH_SEED)
    normals = [np.asarray(mesh.face_normals)[triangles]] if features else []
    return joined(np.asarray(points), normals)


def _library(name: str, path: Path) -> Any:
    """Import a library. Raises MissingDataError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f'{path}: {path.suffix} files are read by {name}: pip install "pointsweep[files]"'
        ) from error


def _damaged(path: Path, kind: str, error: Exception) -> ValueError:
    """Return the error for a file that its library cannot read, with the library's first line."""
    text = str(error).split("\n")[0] or repr(error)
    return ValueError(f"{path}: not a readable {kind} file: {text}")


ROWS = (".txt", ".csv", ".xyz", ".pts", ".asc")
READERS: dict[str, Callable[[Path, int, tuple[str, ...]], np.ndarray]] = {
    **dict.fromkeys((".off", ".obj", ".stl"), _read_mesh),
    **dict.fromkeys((".las", ".laz"), _read_las),
    ".ply": _read_ply,
    ".pcd": _read_pcd,
}
SUFFIXES = (*ROWS, *READERS, ".npy", ".npz")
MESHES = (".off", ".obj", ".stl", ".ply")

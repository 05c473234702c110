"""HDF5 files with `data` (n, P, 3) and `label` (n,) or (n, 1): ModelNet40, ScanObjectNN and their
corrupted sets. S3DIS has the same names with a class for each point.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pointsweep.data.readers.clouds import check_clouds, whole_labels


def read_data_and_label(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arrays of a file as stored. `kind` names it in messages. Raises ValueError."""
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["data"][()]), np.asarray(file["label"][()])
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a {kind} with data and label: {error}"
        ) from error


def read_h5(path: Path, num_classes: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return checked points (n, P, 3) in the type in which they are stored, and labels (n,) int64.

    `kind` names the file in messages. Raises ValueError naming the file and what is wrong with it.
    """
    points, labels = read_data_and_label(path, kind)
    check_clouds(points, labels, num_classes, str(path))

    return points, whole_labels(labels, num_classes, str(path))

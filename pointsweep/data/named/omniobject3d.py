"""OmniObject3D: real scans of about 6,000 objects of 216 kinds.

Source: arXiv 2301.07525; layout of its release:
`point_clouds/ply_files/{1024,4096,16384}/CLASS/*.ply` (another number of points by `root`). Its
authors keep their test objects back and publish no split for classification, so a share of every
class is held out here, the same in every trial; a class of one object is in the test split alone.
Numbers on it cannot be compared with papers' that use all objects to test on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pointsweep.config.datasets import CloudFilesConfig, OmniObject3DConfig
from pointsweep.data.dataset import Copy
from pointsweep.data.files import Files, named_copies

ORIGIN = "OmniObject3D (CC BY 4.0) comes from opendatalab.com/OpenXD-OmniObject3D-New."


class OmniObject3D(Files):
    """Sampled first, then scaled and translated, as ModelNet40 (spec 2.9)."""

    origin = ORIGIN

    def __init__(self, config: CloudFilesConfig) -> None:
        super().__init__(config)
        if config.test is None:
            self.marks = (*self.marks, "split drawn here: none is published")

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        yield from named_copies(OmniObject3DConfig(), root, {})

"""Configurations of the data sets. Their code is in pointsweep/data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict

from pointsweep.config.base import (
    EXACT,
    IN_64_BITS,
    Added,
    Count,
    NamedConfig,
    NonNegative,
    Positive,
    Share,
    TwoPositives,
    Whole,
)
from pointsweep.errors import unknown

Rotation = Literal["none", "gravity", "all"]
NumPoints = Annotated[int, Field(ge=8), IN_64_BITS]
# What files may give of a point beside its coordinates, and how many numbers it is.
FEATURE_CHANNELS = {"normal": 3, "color": 3, "intensity": 1}


class DatasetConfig(NamedConfig):
    """Base of the data sets' configurations: the fields that every one has; augmentation follows
    each paper's program (spec 2.9, 4.4).

    A training cloud is cut to `presample` points by farthest point sampling, then to a random
    `num_points` of those; a test cloud is cut to `num_points` by farthest point sampling. Lengths
    are in the data set's own units, angles in radians.
    """

    # Of every split; the first says which epoch is best.
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    # Above 0: part segmentation; every point has a label, and every cloud a category.
    num_categories: ClassVar[int] = 0
    # The made data set that takes its place in smoke forms and dry runs.
    stand_in: ClassVar[str] = "synthetic"

    num_points: NumPoints = 1024
    """Points of a cloud that a model sees."""
    presample: Whole = 1200
    """Points that farthest point sampling leaves of a training cloud, of which num_points are
    drawn.
    """
    scale: TwoPositives = (1.0, 1.0)
    """Each axis of a training cloud is scaled by a uniform factor from this range."""
    translate: NonNegative = 0.0
    """Each axis of a training cloud is shifted by at most this."""
    rotate: Rotation = "none"
    """A uniform turn of a training cloud about the y axis (gravity), or about any (all)."""
    center: bool = True
    """Subtract the mean, after scaling."""
    unit_sphere: bool = False
    """Divide by the largest norm, after centring."""
    heights: Added[bool] = False
    """A fourth channel: the height above the cloud's lowest point, after scaling, before centring.
    """
    skip_near_origin: Added[bool] = False
    """True: farthest points are never within 0.0316 of the origin, but for the first, as the
    programs' operator has it (T40).
    """
    rotate_together: Added[bool] = False
    """True: one turn for all clouds of a training batch (Point-PEFT's program, T30)."""
    val_fraction: Share = 0.0
    """The share of every class of the training split that is kept out for validation."""
    test_order: Added[Literal["file", "by_class", "shuffled"]] = "file"
    """In which order test clouds are put into batches.

    Without effect unless a model sees the other clouds of its batch.
    """
    train_limit: Count | None = None
    """At most so many training clouds (the first of every class in turn); null: all."""
    test_limit: Count | None = None
    """At most so many test clouds; null: all."""
    allow_overlap: Added[bool] = False
    """True: test or validation clouds that are training clouds too are trained on, and every table
    says so.
    """

    @property
    def has_validation(self) -> bool:
        """Return whether there are validation clouds."""
        return self.val_fraction > 0

    @property
    def point_features(self) -> tuple[str, ...]:
        """Return the features that follow the coordinates of a point, in this order."""
        return ()

    @property
    def feature_channels(self) -> int:
        """Return how many numbers stand behind the coordinates of a point."""
        return sum(FEATURE_CHANNELS[name] for name in self.point_features)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rotate_together and self.rotate == "none":
            yield (
                "rotate_together",
                "there is no turn to share with rotate: none; leave it out",
            )

        if self.presample < self.num_points:
            yield (
                "presample",
                f"must be at least num_points ({self.num_points}), got {self.presample}",
            )

        if self.scale[0] > self.scale[1]:
            yield (
                "scale",
                f"must be two positive numbers, the smaller first, got {list(self.scale)}",
            )


class PartDatasetConfig(DatasetConfig):
    """Base of the data sets of part segmentation.

    `num_points` are drawn at random of every cloud, without a `presample`.
    """

    # accuracy: of the points
    metrics: ClassVar[tuple[str, ...]] = ("instance_miou", "class_miou", "accuracy")
    stand_in: ClassVar[str] = "synthetic_parts"


class SceneDatasetConfig(PartDatasetConfig):
    """Base of the data sets of semantic segmentation: blocks cut from scenes, every point with its
    class.

    To the head of parts a scene is a category, the only one. Every stored point of a test block is
    predicted in each evaluation, `num_points` at a time.
    """

    metrics: ClassVar[tuple[str, ...]] = ("miou", "mean_class_accuracy", "accuracy")
    num_categories: ClassVar[int] = 1
    stand_in: ClassVar[str] = "synthetic_rooms"


class CloudFilesConfig(DatasetConfig):
    """Base of the data sets that the general reader of files reads (docs/data.md)."""

    root: str = ""
    """The folder of the clouds, below POINTSWEEP_DATA."""
    num_classes: Whole = 0
    """Decides the head's size; `pointsweep data add FOLDER` counts them."""
    train: str = "train"
    """The training split, below root: a folder, a list of names, a file of arrays (or a pattern of
    several).
    """
    test: str | None = "test"
    """The test split, below root; null: test_fraction of train."""
    val: str | None = None
    """The validation split, below root."""
    test_fraction: Share = 0.0
    """Of every class of train, in place of `test: null`."""
    pattern: str | None = None
    """Which files in the folders are clouds, say `*.obj`; null: all that can be read."""
    class_names: str | None = None
    """A text file below root, a name a line; null: the folders' names, sorted."""
    lists_folder: Added[str | None] = None
    """The folder below root in which the files lie that lists name; null: root itself."""
    class_before: Added[str | None] = None
    """In lists, a file's class is its name up to the first of this text; null: its folder, or
    another column of the list.
    """
    # "{split}" stands for train, val or test.
    points_key: str | None = None
    """Key of the points in files of arrays; null: a usual name."""
    labels_key: str | None = None
    """Key of the labels in files of arrays; null: a usual name."""
    offsets_key: str | None = None
    """Where clouds of different size start, end to end in one array."""
    groups_key: str | None = None
    """Of which object a cloud is; null: each is an object of its own."""
    split_key: Added[str | None] = None
    """Key of the split of each cloud, where one file of arrays holds several."""
    features: Annotated[tuple[str, ...], Strict(False)] = ("xyz",)
    """xyz, and behind it what the model is to see of a point: normal, color, intensity; the
    networks pointnet2 and pointnext take them.
    """
    stored_points: Whole = 2048
    """At most so many points of a cloud; so many of a mesh."""
    keep_units: bool = False
    """False: each cloud is moved to its mean and scaled to the unit sphere when it is read."""
    scale: TwoPositives = (2 / 3, 3 / 2)
    translate: NonNegative = 0.2
    rotate: Rotation = "none"

    @property
    def has_validation(self) -> bool:
        return self.val is not None or super().has_validation

    @property
    def point_features(self) -> tuple[str, ...]:
        return tuple(name for name in self.features if name in FEATURE_CHANNELS)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.root:
            yield "root", "must be set: the folder of the clouds, below POINTSWEEP_DATA"

        if self.num_classes < 2:
            yield (
                "num_classes",
                (
                    f"must be at least 2, got {self.num_classes}: the number of classes, which"
                    " decides the head's size; `pointsweep data add FOLDER` counts them"
                ),
            )

        known = ("xyz", *FEATURE_CHANNELS)
        for name in self.features:
            if name not in known:
                yield "features", unknown("feature", name, known, "Allowed")

        if self.features[:1] != ("xyz",) or len(set(self.features)) < len(
            self.features
        ):
            yield (
                "features",
                f"must be xyz and then each of {', '.join(FEATURE_CHANNELS)} at most once, got"
                f" {list(self.features)}",
            )

        if self.test is None and self.test_fraction == 0:
            yield (
                "test",
                "null leaves nothing to test on; set test, or test_fraction above 0",
            )

        if self.test is not None and self.test_fraction > 0:
            yield (
                "test_fraction",
                "is taken of train where test is null; set one of the two",
            )

        if self.val is not None and self.val_fraction > 0:
            yield (
                "val_fraction",
                "val names a validation split of its own; set one of the two",
            )

        if self.stored_points < self.num_points:
            yield (
                "stored_points",
                f"must be at least num_points ({self.num_points}), got {self.stored_points}",
            )


class FilesConfig(CloudFilesConfig):
    """Anybody's clouds: a folder of files or arrays (docs/data.md)."""

    name: Literal["files"] = "files"


class ModelNet10Config(CloudFilesConfig):
    """ModelNet10: 4,899 CAD shapes of 10 classes, as meshes, or as a part of
    `modelnet40_normal_resampled`.
    """

    name: Literal["modelnet10"] = "modelnet10"
    root: str = "ModelNet10"
    """Below POINTSWEEP_DATA; the layout is recognised by what is in it."""
    num_classes: Whole = 10
    center: bool = False


class ShapeNet55Config(CloudFilesConfig):
    """ShapeNet-55: 52,470 CAD shapes of 55 classes, or the 34 of ShapeNet-34."""

    name: Literal["shapenet55"] = "shapenet55"
    root: str = "ShapeNet55-34"
    num_classes: Whole = 55
    train: str = "ShapeNet-55/train.txt"
    test: str | None = "ShapeNet-55/test.txt"
    lists_folder: Added[str | None] = "shapenet_pc"
    class_before: Added[str | None] = "-"
    center: bool = False


class OmniObject3DConfig(CloudFilesConfig):
    """OmniObject3D: real scans of 216 kinds of objects, without a published split."""

    name: Literal["omniobject3d"] = "omniobject3d"
    root: str = "OmniObject3D/point_clouds/ply_files/1024"
    num_classes: Whole = 216
    train: str = "."
    test: str | None = None
    test_fraction: Share = 0.2
    presample: Whole = 1024  # as many as are stored
    center: bool = False


class ModelNet40Config(DatasetConfig):
    """ModelNet40: 12,311 CAD shapes of 40 classes."""

    # 2: centred and scaled in float64. 3: training clouds are shuffled before they are sampled.
    code_revision: ClassVar[int] = 3
    num_classes: ClassVar[int] = 40

    name: Literal["modelnet40"] = "modelnet40"
    folder: str = "modelnet40_ply_hdf5_2048"
    """Below POINTSWEEP_DATA; the layout is recognised by what is in it."""
    scale: TwoPositives = (2 / 3, 3 / 2)
    translate: NonNegative = 0.2
    center: bool = False
    presample: Whole = 1200


class ModelNet40FewshotConfig(DatasetConfig):
    """Few-shot ModelNet40: `way` classes, `shot` training shapes and 20 test shapes of each, ten
    folds.
    """

    code_revision: ClassVar[int] = 3  # as that of ModelNet40Config
    num_classes: ClassVar[int] = 40

    name: Literal["modelnet40_fewshot"] = "modelnet40_fewshot"
    way: Literal[5, 10] = 5
    """Classes of an episode."""
    shot: Literal[10, 20] = 10
    """Training shapes of each class."""
    fold: Annotated[int, Field(ge=0, le=9)] | None = 0
    """null: the trial's seed, so that the seeds of a table are the folds."""
    source: Literal["generated", "point_bert"] = "generated"
    """Episodes drawn here, or those that Point-BERT published."""
    folder: str | None = None
    """Below POINTSWEEP_DATA; null: modelnet40_ply_hdf5_2048 (generated) or ModelNetFewshot
    (point_bert).
    """
    scale: TwoPositives = (2 / 3, 3 / 2)
    translate: NonNegative = 0.2
    center: bool = False
    presample: Whole = 1200


ScanObjectNNVariant = Literal[
    "pb_t50_rs", "pb_t50_r", "pb_t25_r", "pb_t25", "obj_bg", "obj_only"
]


class ScanObjectNNConfig(DatasetConfig):
    """ScanObjectNN: real scans of 15 kinds of objects."""

    num_classes: ClassVar[int] = 15

    name: Literal["scanobjectnn"] = "scanobjectnn"
    variant: ScanObjectNNVariant = "pb_t50_rs"
    """Which of the published splits."""
    copies_in_a_row: Added[Annotated[int, Field(ge=2), IN_64_BITS] | None] = None
    """So many clouds of each object stand one after another in the file, which is checked."""
    folder: str = "scanobjectnn"
    """Below POINTSWEEP_DATA."""
    scale: TwoPositives = (0.9, 1.1)
    rotate: Rotation = "gravity"


class ScanObjectNNFewshotConfig(DatasetConfig):
    """Few-shot ScanObjectNN: `way` classes, `shot` training clouds and 20 test clouds of each, ten
    folds.
    """

    num_classes: ClassVar[int] = 15

    name: Literal["scanobjectnn_fewshot"] = "scanobjectnn_fewshot"
    way: Literal[5, 10] = 5
    """Classes of an episode."""
    shot: Literal[10, 20] = 10
    """Training clouds of each class."""
    fold: Annotated[int, Field(ge=0, le=9)] | None = 0
    """null: the trial's seed, so that the seeds of a table are the folds."""
    variant: ScanObjectNNVariant = "obj_bg"
    """Which of the published splits the episodes are drawn from."""
    folder: str = "scanobjectnn"
    """Below POINTSWEEP_DATA."""
    # This and the next as in ScanObjectNNConfig.
    scale: TwoPositives = (0.9, 1.1)
    rotate: Rotation = "gravity"


class CorruptedConfig(DatasetConfig):
    """Base of the data sets whose test clouds are corrupted."""

    corruption: Literal[
        "clean",
        "scale",
        "jitter",
        "rotate",
        "dropout_global",
        "dropout_local",
        "add_global",
        "add_local",
    ] = "clean"
    """Which corruption the test clouds have."""
    severity: Annotated[int, Field(ge=0, le=4)] = 0
    """From 0, the mildest, to 4."""
    source: Literal["generated", "published"] = "generated"
    """Corrupted here, or read from the published files."""
    min_points: Count = 512
    """A test cloud with fewer points is filled up with its own."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.corruption == "clean" and self.severity != 0:
            yield "severity", f"clean has none, leave it at 0, got {self.severity}"


class ModelNet40CConfig(CorruptedConfig):
    """ModelNet-C: ModelNet40 to train on, and one corruption at one severity to test on."""

    code_revision: ClassVar[int] = 3  # as that of ModelNet40Config
    num_classes: ClassVar[int] = 40

    name: Literal["modelnet40_c"] = "modelnet40_c"
    folder: str = "modelnet40_ply_hdf5_2048"
    """Of the parent, below POINTSWEEP_DATA."""
    corrupted_folder: str = "modelnet_c"
    """Of the published files; `source: generated` does not look there."""
    # This and the next three as in the parent.
    scale: TwoPositives = (2 / 3, 3 / 2)
    translate: NonNegative = 0.2
    center: bool = False
    presample: Whole = 1200


class ScanObjectNNCConfig(CorruptedConfig):
    """ScanObjectNN-C: ScanObjectNN to train on, and one corruption at one severity to test on."""

    num_classes: ClassVar[int] = 15

    name: Literal["scanobjectnn_c"] = "scanobjectnn_c"
    variant: ScanObjectNNVariant = "pb_t50_rs"
    """Which of the published splits."""
    copies_in_a_row: Added[Annotated[int, Field(ge=2), IN_64_BITS] | None] = None
    """As in the parent."""
    folder: str = "scanobjectnn"
    """Of the parent, below POINTSWEEP_DATA."""
    corrupted_folder: str = "scanobjectnn_c"
    """Of the published files; `source: generated` does not look there."""
    # This and the next as in the parent.
    scale: TwoPositives = (0.9, 1.1)
    rotate: Rotation = "gravity"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.source == "published" and self.variant != "pb_t50_rs":
            yield (
                "variant",
                f"the published files are made of pb_t50_rs, got {self.variant}",
            )


class ShapeNetPartConfig(PartDatasetConfig):
    """ShapeNetPart: 16,881 shapes of 16 categories, every point labelled with one of 50 parts.

    Scale and shift as of Point-MAE's program, which scales all axes of a cloud alike; here each has
    its own factor.
    """

    num_classes: ClassVar[int] = 50  # parts
    num_categories: ClassVar[int] = 16

    name: Literal["shapenetpart"] = "shapenetpart"
    folder: str = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    """Below POINTSWEEP_DATA."""
    num_points: NumPoints = 2048
    presample: Whole = 2048
    scale: TwoPositives = (0.8, 1.25)
    translate: NonNegative = 0.1
    center: bool = False


# Where each layout of S3DIS lies below POINTSWEEP_DATA, as its published programs name it.
S3DIS_FOLDERS = {"blocks": "indoor3d_sem_seg_hdf5_data", "rooms": "stanford_indoor3d"}


class S3DISConfig(SceneDatasetConfig):
    """S3DIS: 271 rooms in six areas of buildings, every point of one of 13 classes."""

    num_classes: ClassVar[int] = 13

    name: Literal["s3dis"] = "s3dis"
    layout: Literal["blocks", "rooms"] = "blocks"
    """PointNet's hdf5 files of blocks, or whole rooms, which are cut here."""
    folder: str | None = None
    """Below POINTSWEEP_DATA; null: indoor3d_sem_seg_hdf5_data (blocks) or stanford_indoor3d
    (rooms).
    """
    test_area: Annotated[int, Field(ge=1, le=6)] = 5
    """The area that is tested on; the other five are trained on."""
    block: Positive = 1.0
    """Edge of a block's square on the floor, in metres (rooms)."""
    stride: Positive = 0.5
    """Distance between training blocks, in metres (rooms). Test blocks never overlap."""
    stored_points: Whole | None = 4096
    """At most so many random points of a block are kept (rooms); null: all."""
    min_points: Count = 100
    """A training block with fewer points is left out (rooms)."""
    num_points: NumPoints = 4096
    presample: Whole = 4096
    center: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for name in ("block", "stride", "stored_points", "min_points"):
            if (
                self.layout == "blocks"
                and getattr(self, name) != type(self).model_fields[name].default
            ):
                yield (
                    name,
                    "acts on `layout: rooms` alone; the published blocks are 1 m wide, 0.5 m apart"
                    " and of 4,096 points; leave it out",
                )

        if self.stride > self.block:
            yield (
                "stride",
                f"must be at most block ({self.block:g}), got {self.stride:g}: points between two"
                " blocks would be in none",
            )


def _too_few_source_points(stored: int, taken: int) -> Iterator[tuple[str, str]]:
    """Yield the problem of made clouds that have fewer points than are taken of them."""
    if stored < taken:
        yield "source_points", f"must be at least num_points ({taken}), got {stored}"


class SyntheticConfig(DatasetConfig):
    """Synthetic shapes: parametric classes whose proportions overlap, seen from one side, with
    noise.
    """

    name: Literal["synthetic"] = "synthetic"
    num_classes: Annotated[int, Field(ge=2, le=12)] = 10
    """How many of the twelve classes."""
    train_per_class: Count = 40
    """Training clouds of each class."""
    test_per_class: Count = 20
    """Test clouds of each class."""
    source_points: Whole = 512
    """Points stored of every cloud."""
    noise: NonNegative = 0.03
    """Standard deviation of a point's place; shapes are about 2 wide."""
    partial: Annotated[float, Field(ge=0, le=0.9), EXACT] = 0.3
    """Share of the surface cut away on one side."""
    clutter: Annotated[float, Field(ge=0, le=0.5), EXACT] = 0.05
    """Share of the points that belong to no shape."""
    data_seed: Whole = 0
    """Seed of the clouds."""
    presample: Whole = 512
    num_points: NumPoints = 256
    scale: TwoPositives = (0.9, 1.1)
    rotate: Rotation = "gravity"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from _too_few_source_points(self.source_points, self.num_points)


class SyntheticPartsConfig(PartDatasetConfig):
    """Synthetic shapes made of labelled parts: four categories, ten parts."""

    num_classes: ClassVar[int] = 10  # parts
    num_categories: ClassVar[int] = 4

    name: Literal["synthetic_parts"] = "synthetic_parts"
    train_per_category: Count = 50
    """Training shapes of each category."""
    test_per_category: Count = 25
    """Test shapes of each category."""
    source_points: Whole = 512
    """Points stored of every shape, at least; at most a quarter more."""
    noise: NonNegative = 0.03
    """Standard deviation of a point's place; shapes are about 2 wide."""
    data_seed: Whole = 0
    """Seed of the shapes."""
    num_points: NumPoints = 256
    presample: Whole = 256
    scale: TwoPositives = (0.9, 1.1)
    rotate: Rotation = "gravity"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from _too_few_source_points(self.source_points, self.num_points)


class SyntheticRoomsConfig(SceneDatasetConfig):
    """Synthetic blocks of rooms: floor, wall, table, chair and clutter."""

    num_classes: ClassVar[int] = 5

    name: Literal["synthetic_rooms"] = "synthetic_rooms"
    train_per_category: Count = 100
    """Training blocks; there is one category."""
    test_per_category: Count = 50
    """Test blocks."""
    source_points: Whole = 512
    """Points stored of every block."""
    noise: NonNegative = 0.01
    """Standard deviation of a point's place, in metres; blocks are 1 m wide."""
    data_seed: Whole = 0
    """Seed of the blocks."""
    num_points: NumPoints = 256
    presample: Whole = 256
    scale: TwoPositives = (0.9, 1.1)
    rotate: Rotation = "gravity"
    center: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from _too_few_source_points(self.source_points, self.num_points)

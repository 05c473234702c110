"""The metrics of a trial: one line each. Tables, checks of records, names in MLflow and the docs
take what they know from here.

A recorded metric is measured after every epoch on the training, validation and test splits, and
stands in history and record. A computed metric is worked out when a table asks for it, by
scikit-learn, from the predictions that every finished trial has kept. So it can be added at any
time: trials that are finished already have it too.

Sources: balanced accuracy, Brodersen et al., ICPR 2010 (papers on point clouds call it mean class
accuracy, mAcc); macro F1 as the mean of the classes' F1, Opitz and Burst, arXiv 1911.03347.
Letters: N test objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pointsweep.errors import PluginError
from pointsweep.utils import entry_points

if TYPE_CHECKING:
    import numpy as np

TEST, VAL = "test", "val"
Direction = Literal["maximize", "minimize"]
# predictions (N,) and true classes (N,) -> the metric
FromPredictions = Callable[["np.ndarray", "np.ndarray"], float]


@dataclass(frozen=True)
class Metric:
    """A metric without its split: `test/accuracy` is the accuracy of the test split.

    `unit` is % for what lies between 0 and 1; only such metrics stand in tables. `task` says whose
    metric it is where it is of one task alone. What is not `recorded` is computed:
    `from_predictions` gives it of the stored predictions.
    """

    name: str
    meaning: str
    direction: Direction = "maximize"
    unit: Literal["%", ""] = "%"
    task: Literal["", "classification", "parts", "scenes"] = ""
    recorded: bool = True
    from_predictions: FromPredictions | None = None

    @property
    def title(self) -> str:
        """The name in words, as a table's column has it."""
        return self.name.replace("_", " ")


def computed_metric(name: str, meaning: str, compute: FromPredictions) -> Metric:
    """Return a metric of classification, larger is better, that is computed from stored
    predictions.
    """
    return Metric(
        name, meaning, task="classification", recorded=False, from_predictions=compute
    )


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of test objects whose class was predicted."""
    return int((predicted == labels).sum()) / len(labels)


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over the true classes of the share of their objects that was predicted
    right.
    """
    from sklearn.metrics import recall_score

    # what is predicted and true of no object has no accuracy
    classes = sorted(set(labels.tolist()))

    return float(recall_score(labels, predicted, labels=classes, average="macro"))


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean F1 over all classes that are true or predicted of any object."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro"))


# To add a metric of stored predictions, add a line.
_ALL = (
    Metric(
        "accuracy",
        "share of the objects whose class is right; of parts and scenes, of the points",
        from_predictions=accuracy,
    ),
    Metric(
        "instance_miou", "mean over the objects of their parts' mean IoU", task="parts"
    ),
    Metric(
        "class_miou",
        "mean over the categories of their objects' mean IoU",
        task="parts",
    ),
    Metric(
        "miou",
        "mean over the classes of their IoU over all points of the split",
        task="scenes",
    ),
    Metric(
        "mean_class_accuracy",
        "mean over the classes of the share of their points that is right",
        task="scenes",
    ),
    Metric("loss", "cross entropy", direction="minimize", unit=""),
    computed_metric(
        "balanced_accuracy",
        "mean class accuracy: the mean over the classes of their accuracy",
        balanced_accuracy,
    ),
    computed_metric("macro_f1", "mean over the classes of their F1", macro_f1),
)
METRICS = {metric.name: metric for metric in _ALL}
FRACTIONS = tuple(name for name, metric in METRICS.items() if metric.unit == "%")
RECORDED_FRACTIONS = tuple(name for name in FRACTIONS if METRICS[name].recorded)
DEFAULT = "test/accuracy"
# Whichever of these the epochs of a trial record decides which epoch is best.
DECIDING = ("instance_miou", "miou", "accuracy")
# a mean over the test objects, which a record keeps one by one (Record.correct)
PER_OBJECT = "test/accuracy"
BUILT_IN = frozenset(METRICS)
_ORIGINS: dict[str, str] = {}  # where the metrics of others are from


def register(metric: Metric, origin: str) -> None:
    """Add a metric of somebody else's; `origin` says where it is from. Raises PluginError for one
    that no table can show.
    """
    known = METRICS.get(metric.name)
    if known is metric:
        return
    if metric.name in BUILT_IN:
        raise PluginError(
            f"{origin}: the metric {metric.name!r} is pointsweep's own; rename it"
        )
    if metric.recorded or metric.from_predictions is None or metric.unit != "%":
        raise PluginError(
            f"{origin}: the metric {metric.name!r} is computed from no predictions; make it by"
            " computed_metric(...)"
        )
    if not metric.name.isidentifier():
        raise PluginError(
            f"{origin}: a metric's name is letters, digits and _, got {metric.name!r}"
        )
    if known is not None and _ORIGINS.get(metric.name) != origin:
        raise PluginError(
            f"{origin}: the metric {metric.name!r} is that of {_ORIGINS.get(metric.name)} too;"
            " rename one"
        )

    METRICS[metric.name] = metric
    _ORIGINS[metric.name] = origin


def discover(name: str) -> bool:
    """Register the metric of this name that an installed package offers; tell whether there is one.
    Raises PluginError.
    """
    for point in entry_points.offered("metrics", name):
        try:
            metric = point.load()
        except Exception as error:
            # whatever another package's import raises: said with its words
            raise PluginError(
                f"metric {name!r} of {point.value}: {type(error).__name__}: {error}"
            ) from error

        if not isinstance(metric, Metric) or metric.name != name:
            raise PluginError(
                f"the entry point pointsweep.metrics {name} = {point.value} is no metric of that"
                " name"
            )

        register(metric, point.value)
        return True

    return False


def computed_names() -> tuple[str, ...]:
    """Return the metrics that are computed from stored predictions."""
    return tuple(name for name, metric in METRICS.items() if not metric.recorded)


def table_metrics() -> tuple[str, ...]:
    """Return what a table can show, the default first. Predictions are kept of the test split
    alone.
    """
    names = []
    for name, metric in METRICS.items():
        if metric.unit == "%":
            splits = (TEST, VAL) if metric.recorded else (TEST,)
            names += [f"{split}/{name}" for split in splits]

    return tuple(names)


def offered() -> tuple[str, ...]:
    """Return what a table can show, and with it the metrics that installed packages offer."""
    known = table_metrics()
    others = []
    for point in entry_points.offered("metrics"):
        if with_split(point.name) not in known:
            others.append(with_split(point.name))

    return (*known, *others)


def computed(metric: str) -> Metric | None:
    """Return the metric if a table's metric is computed from stored predictions; None for one that
    is recorded.
    """
    split, _, name = metric.partition("/")
    definition = METRICS.get(name)

    if split != TEST or definition is None or definition.recorded:
        return None

    return definition


def of_dataset(recorded: Sequence[str]) -> list[str]:
    """Return the metrics that a data set's trials have, given those that its epochs record, the
    deciding one first.
    """
    task = METRICS[recorded[0]].task or "classification"
    names = list(recorded)

    for name in computed_names():
        if METRICS[name].task in ("", task):
            names.append(name)

    return names


def deciding(names: Collection[str]) -> str:
    """Return the metric, without its split, that decides which epoch of a trial is best; `names`
    are those that an epoch records, with their splits.
    """
    return next(name for name in DECIDING if f"{TEST}/{name}" in names)


def higher_is_better(metric: str) -> bool:
    """Tell whether the larger of two values of a metric, with or without its split, is the better
    one.
    """
    _, _, name = metric.rpartition("/")
    return name not in METRICS or METRICS[name].direction == "maximize"


def with_split(name: str) -> str:
    """Return a metric's full name; one without a split is that of the test split."""
    return name if "/" in name else f"{TEST}/{name}"

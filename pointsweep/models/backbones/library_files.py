"""Files of a model by name: in a folder of the user's, in the hub's cache, or on the hub.

Weights are read from safetensors alone. Files of pickles (.bin, .pt) are refused, as reading one
runs what is in it.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
from pathlib import Path

from pointsweep.config.backbones import WITHOUT_CHECKPOINT, LibraryBackboneConfig
from pointsweep.errors import MissingWeightsError, WeightsNotFetchedError

CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def model_folder(config: LibraryBackboneConfig) -> Path | None:
    """The folder that `model` names, by itself or below POINTSWEEP_DATA; None where it names
    none.
    """
    for root in ("", os.environ.get("POINTSWEEP_DATA", "")):
        path = Path(root, config.model).expanduser()
        if config.model and path.is_dir():
            return path

    return None


def config_file(config: LibraryBackboneConfig, repository: str | None = None) -> Path:
    """The model's config.json; small, so it is fetched where it is not here. Raises
    MissingWeightsError.
    """
    folder = model_folder(config)
    if folder is None:
        return _hub_file(config, repository or config.model, CONFIG, fetch=True)

    path = folder / CONFIG
    if not path.is_file():
        entries = (
            ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        )
        raise MissingWeightsError(
            f"backbone.model: the folder {folder} has no {CONFIG}; it holds {entries}"
        )

    return path


def weight_file(
    config: LibraryBackboneConfig, fetch: bool, repository: str | None = None
) -> Path:
    """The model's safetensors file, or the index of several. Raises MissingWeightsError,
    WeightsNotFetchedError.
    """
    folder = model_folder(config)
    if folder is None:
        return _hub_weights(config, repository or config.model, fetch)

    for name in (WEIGHTS, INDEX):
        if (folder / name).is_file():
            _check_shards(folder / name)
            return folder / name

    for entry in sorted(folder.iterdir()):
        if entry.suffix in PICKLES:
            raise MissingWeightsError(_pickled(str(folder), entry.name))

    raise MissingWeightsError(
        f"backbone.model: the folder {folder} has no {WEIGHTS}; put it there, or set weights to"
        " random"
    )


def _check_shards(path: Path) -> None:
    if path.name != INDEX:
        return

    missing = [name for name in shards_of(path) if not (path.parent / name).is_file()]
    if missing:
        raise MissingWeightsError(
            f"backbone.model: {path} lists {missing[0]}, which is not there ({len(missing)} such"
            " files)"
        )


def shards_of(index: Path) -> list[str]:
    """The files that an index lists. Raises MissingWeightsError for an index that is none."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MissingWeightsError(
            f"backbone.model: {index} is no index of safetensors files: {error}"
        ) from error


def _pickled(where: str, name: str) -> str:
    return (
        f"backbone.model: {where} has its weights in {name} alone, a pickle, and reading one runs"
        " what is in it. Where you trust it, save it as safetensors on another machine:"
        " AutoModel.from_pretrained(...).save_pretrained(FOLDER), then model: FOLDER"
    )


def _hub_weights(config: LibraryBackboneConfig, repository: str, fetch: bool) -> Path:
    for name in (WEIGHTS, INDEX):
        path = _cached(repository, name, config.revision)
        if path is not None:
            if name == INDEX:
                for shard in shards_of(path):
                    _hub_file(config, repository, shard, fetch)
            return path

    names = _names_on_hub(config, repository)
    name = next((name for name in (WEIGHTS, INDEX) if name in names), "")
    if not name:
        pickled = next(
            (candidate for candidate in names if Path(candidate).suffix in PICKLES), ""
        )
        if pickled:
            raise MissingWeightsError(_pickled(f"the hub's {repository}", pickled))

        raise MissingWeightsError(
            f"backbone.model: the hub's {repository} has no {WEIGHTS}; it holds"
            f" {', '.join(sorted(names)[:8])}"
        )

    path = _hub_file(config, repository, name, fetch)
    if name == INDEX:
        for shard in shards_of(path):
            _hub_file(config, repository, shard, fetch)

    return path


def _cached(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError as error:
        raise MissingWeightsError(
            f"backbone.model: {repository!r} is no folder here, and no id of a hub: {error}"
        ) from error

    return Path(path) if isinstance(path, str) else None


def _hub_file(
    config: LibraryBackboneConfig, repository: str, name: str, fetch: bool
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    cached = _cached(repository, name, config.revision)

    if cached is not None:
        return cached

    try:
        _require_hub(repository)
        if fetch:
            return Path(hf_hub_download(repository, name, revision=config.revision))

        _names_on_hub(config, repository)
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, MissingWeightsError):
            raise
        raise MissingWeightsError(_not_here(config, repository, name, error)) from error

    raise WeightsNotFetchedError(
        f"weights of {config.name} {repository} are not cached: file {name}; a launch fetches them"
        " first"
    )


@functools.cache
def _require_hub(repository: str) -> None:
    """Raise OSError, ValueError or HTTPError where the hub cannot be reached.

    The library's own calls try five times, which lets a user without a network wait for minutes.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")

    # What the hub answers, a refusal too, is for the calls that follow.
    with contextlib.suppress(HfHubHTTPError):
        url = hf_hub_url(repository, CONFIG)
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


@functools.cache
def _listed(repository: str, revision: str | None) -> tuple[str, ...]:
    from huggingface_hub import HfApi

    _require_hub(repository)
    return tuple(HfApi().list_repo_files(repository, revision=revision))


def _names_on_hub(config: LibraryBackboneConfig, repository: str) -> tuple[str, ...]:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        return _listed(repository, config.revision)
    except (OSError, ValueError, HTTPError) as error:
        raise MissingWeightsError(
            _not_here(config, repository, WEIGHTS, error)
        ) from error


def _not_here(
    config: LibraryBackboneConfig, repository: str, name: str, error: Exception
) -> str:
    """Return what was tried, and what can be done without a network."""
    from huggingface_hub import constants

    cause = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
    revision = f", revision {config.revision}" if config.revision else ""
    root = os.environ.get("POINTSWEEP_DATA")
    folders = f"{config.model} is no folder here"

    if root:
        folders += f" or below {root}"

    near = difflib.get_close_matches(repository, cached_models(), n=2, cutoff=0.6)
    meant = f" Cached here: {', '.join(near)}." if near else ""
    needed = f"{CONFIG} and {WEIGHTS}"

    if config.weights in WITHOUT_CHECKPOINT:
        needed = CONFIG

    return (
        f"backbone.model: {folders}; {name} of the hub id {repository}{revision} is not in"
        f" {constants.HF_HUB_CACHE}; and the hub cannot be asked: {cause}.{meant} Without a"
        f" network: put {needed} into a folder and set backbone.model to it"
    )


def cached_models() -> list[str]:
    """Ids of models in the hub's cache on this machine."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    models = []

    for entry in folder.glob("models--*"):
        models.append(entry.name.removeprefix("models--").replace("--", "/"))

    return sorted(models)

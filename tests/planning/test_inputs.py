"""A launch looks at the clouds and the weights that are here, refuses what they cannot give, and says it with --plan too."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pointsweep.cli.run import main
from pointsweep.config import registry
from pointsweep.data.modelnet40 import CLASSES
from tests.data.made import clouds, write_modelnet

FOLDER = "modelnet40_ply_hdf5_2048"
BASE = """
name: inputs
base:
  dataset: {name: modelnet40, num_points: 64, presample: 64}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny}
  method: head_only
  train: {epochs: 1, batch_size: 16, lr: 1.0e-3, warmup_epochs: 0}
seeds: [0]
"""
ONE_ROW = BASE + "rows: [{label: a}]\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with two training clouds and one test cloud of 64 points of every class of ModelNet40."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_modelnet(tmp_path / "data" / FOLDER, 2, 1, 64)
    return tmp_path / "data"


def write(text: str) -> str:
    Path("sweep.yaml").write_text(text)
    return "sweep.yaml"


def run(*arguments: str) -> int:
    return main([*arguments, "--inline", "--store", "store", "--tracking-uri", "none"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The problems that stop a launch, each a line; --plan must say the same, and nothing may be launched."""
    assert run(*arguments, "--plan") == 2
    planned = capsys.readouterr().err
    assert run(*arguments) == 2
    assert capsys.readouterr().err == planned
    assert not Path("store/trials").exists()
    return [line.strip() for line in planned.splitlines() if line.startswith("  ")]


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a launch that succeeds prints, in one line."""
    assert run(*arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def replace_clouds(folder: Path, split: str, points: np.ndarray) -> None:
    with h5py.File(folder / f"ply_data_{split}0.h5", "r+") as file:
        del file["data"]
        file["data"] = points.astype(np.float32)


def stored_clouds(folder: Path, split: str) -> np.ndarray:
    with h5py.File(folder / f"ply_data_{split}0.h5") as file:
        return np.asarray(file["data"])


# What the data cannot give


def test_more_points_than_the_clouds_have_are_refused(data, capsys):
    rows = ", ".join(
        f"{{label: {count} points, dataset.num_points: {count}, dataset.presample: {count}}}" for count in (64, 128, 512)
    )
    found = refused(capsys, write(f"{BASE}rows: [{rows}]\n"))
    assert [line.partition(" asked for")[0] for line in found] == [
        "128 points / all: dataset.num_points: 128",
        "512 points / all: dataset.num_points: 512",
    ]
    assert all("have 64 points: at most 64" in line for line in found)


def test_a_batch_of_more_clouds_than_there_are_is_refused(data, capsys):
    [line] = refused(capsys, write(ONE_ROW), "train.batch_size=81")
    assert "train.batch_size: 81 is more than the 80 training clouds" in line
    # Validation clouds are held out first: 40 are left.
    [line] = refused(capsys, write(ONE_ROW), "train.batch_size=41", "dataset.val_fraction=0.5")
    assert "train.batch_size: 41 is more than the 40 training clouds" in line


def test_a_network_that_is_not_trained_needs_no_batch(data, capsys):
    text = ONE_ROW.replace("  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}\n", "")
    text = text.replace("  backbone: {name: tiny}\n  method: head_only\n", "  network: {name: point_nn, neighbours: 8}\n")
    write(text)
    assert run("sweep.yaml", "--plan", "train.batch_size=512") == 0, capsys.readouterr().err


def test_few_shot_episodes_of_too_few_shapes_are_refused_with_all_short_classes(data, capsys):
    [line] = refused(capsys, write(ONE_ROW.replace("name: modelnet40", "name: modelnet40_fewshot")))
    assert "few-shot episode 5way_10shot/0: 10 train shapes of a class are needed, here" in line
    assert line.count(" has 2") == 5
    assert "20 test shapes of a class are needed, here" in line


@pytest.mark.parametrize("order", ["as they are", "reversed", "shuffled"])
def test_test_clouds_that_are_training_clouds_are_refused_in_any_order_of_their_points(data, capsys, order):
    points = clouds(40, 64, seed=7)
    copies = stored_clouds(data / FOLDER, "train")[5:15]
    if order == "reversed":
        copies = copies[:, ::-1]
    elif order == "shuffled":
        copies = copies[:, np.random.default_rng(0).permutation(64)]
    points[3:13] = copies
    replace_clouds(data / FOLDER, "test", points)
    [line] = refused(capsys, write(ONE_ROW))
    assert "10 of 40 test clouds are training clouds" in line
    assert "dataset.allow_overlap: true" in line


def test_overlap_that_is_allowed_by_name_is_marked(data, capsys):
    replace_clouds(data / FOLDER, "test", stored_clouds(data / FOLDER, "train")[:40, ::-1])
    said = table(capsys, write(ONE_ROW.replace("presample: 64}", "presample: 64, allow_overlap: true}")))
    assert "40 of 40 test clouds are training clouds (allowed by dataset.allow_overlap)" in said


def test_validation_clouds_that_are_training_clouds_are_refused(data, capsys):
    points = stored_clouds(data / FOLDER, "train")
    points[40:] = points[:40, ::-1]  # two shapes of every class are one, and half of each class is held out
    replace_clouds(data / FOLDER, "train", points)
    [line] = refused(capsys, write(ONE_ROW), "dataset.val_fraction=0.5")
    assert "40 of 40 validation clouds are training clouds" in line
    assert run("sweep.yaml", "--plan") == 0


# What the weights cannot give


def vit_mnist(side: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint of that backbone under timm's names, with side x side positions."""
    draw = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(shape, generator=draw)

    made = {"cls_token": make(1, 1, 64), "pos_embed": make(1, 1 + side * side, 64)}
    made |= {"norm.weight": make(64), "norm.bias": make(64)}
    for number in range(6):
        shapes = {"norm1.weight": (64,), "norm1.bias": (64,), "norm2.weight": (64,), "norm2.bias": (64,)}
        shapes |= {"attn.qkv.weight": (768, 64), "attn.proj.weight": (64, 256), "attn.proj.bias": (64,)}
        shapes |= {"mlp.fc1.weight": (128, 64), "mlp.fc1.bias": (128,), "mlp.fc2.weight": (64, 128), "mlp.fc2.bias": (64,)}
        made |= {f"blocks.{number}.{name}": make(*shape) for name, shape in shapes.items()}
    return made


WITH_WEIGHTS = ONE_ROW.replace("{name: tiny}", "{name: vit_mnist, weights: vit.safetensors}")


def test_weights_that_cannot_be_read_are_refused(data, capsys):
    Path("vit.safetensors").write_text("<html>not found</html>")
    [line] = refused(capsys, write(WITH_WEIGHTS))
    assert line.startswith("lacking here: weights of vit_mnist: vit.safetensors")


def test_positions_of_another_size_are_refused_with_both_sizes(data, capsys):
    save_file(vit_mnist(side=5), "vit.safetensors")
    [line] = refused(capsys, write(WITH_WEIGHTS))
    assert "vit.safetensors does not fit" in line
    assert "has 5 x 5 positions, expected 7 x 7 positions" in line


@pytest.mark.parametrize(
    ("backbone", "name", "leading", "expected"),
    [
        ("vit_in21k", "pos_embed", 1, "14 x 14"),
        ("deit", "pos_embed", 1, "14 x 14"),
        ("dinov2", "pos_embed", 1, "37 x 37"),
        ("vit_mnist", "pos_embed", 1, "7 x 7"),
        ("ssast", "pos_embed", 2, "8 x 64"),
        ("imagebind_audio", "modality_preprocessors.audio.pos_embedding_helper.pos_embed", 1, "12 x 19"),
        ("clip_vision", "embeddings.position_embedding.weight", 1, "14 x 14"),
    ],
)
def test_every_position_table_says_which_size_it_has_and_which_it_needs(backbone, name, leading, expected):
    cls = registry.load("backbones", backbone)
    with torch.device("meta"):
        made = cls(registry.config_class("backbones", backbone)(name=backbone))
    table = torch.zeros(1, leading + 36, 4)
    with pytest.raises(ValueError, match=f"6 x 6 positions, expected {expected} positions"):
        made.convert({name: table[0] if backbone == "clip_vision" else table})


# All in one round


def test_fifteen_mistakes_of_the_file_the_data_the_weights_and_the_models_are_found_in_one_round(data, capsys):
    leak = write_modelnet(data / "leak", 2, 1, 64)
    replace_clouds(leak, "test", stored_clouds(leak, "train")[:40])
    broken = write_modelnet(data / "broken", 2, 1, 64)
    points = stored_clouds(broken, "train")
    points[3, 5] = np.nan
    replace_clouds(broken, "train", points)
    Path("html.safetensors").write_text("<html>")
    save_file(vit_mnist(side=5), "small.safetensors")
    rows = """
metric: test/acuracy
protocol: best
sedes: 3
rows:
  - {label: a, method: {name: lora, rnk: 4}}
  - {label: b, method: promt}
  - {label: c, train.lr: -1.0}
  - {label: d, backbone: tinny}
  - {label: e, dataset.num_points: 128, dataset.presample: 128}
  - {label: f, train.batch_size: 512}
  - {label: g, dataset.folder: leak}
  - {label: h, dataset.folder: broken}
  - {label: i, dataset: {name: modelnet40_fewshot, num_points: 64, presample: 64}}
  - {label: j, backbone: {name: vit_mnist, weights: html.safetensors}}
  - {label: k, backbone: {name: vit_mnist, weights: small.safetensors}}
  - {label: l, tokenizer.neighbours: 200}
"""
    found = refused(capsys, write(BASE + rows))
    words = [
        "test/acuracy", "best", "sedes", "rnk", "promt", "-1.0", "tinny", "num_points: 128", "batch_size: 512",
        "test clouds are training clouds", "broken", "few-shot", "html.safetensors", "5 x 5 positions", "200 neighbours",
    ]  # fmt: skip
    for word in words:
        assert [line for line in found if word in line], f"{word} is not among\n" + "\n".join(found)
    assert len(found) == len(words), "\n".join(found)


def test_parts_of_a_cell_are_looked_at_though_the_base_has_a_mistake(data, capsys):
    Path("vit.safetensors").write_text("<html>")
    found = refused(capsys, write(WITH_WEIGHTS.replace("method: head_only", "method: head_onli")), "train.batch_size=81")
    assert len(found) == 3
    for word in ("head_onli", "vit.safetensors", "train.batch_size: 81"):
        assert [line for line in found if word in line]


# What a table says of its data


def test_a_part_of_the_set_is_marked_counted_and_not_judged_against_the_papers_number(data, capsys):
    write(ONE_ROW.replace("{label: a}", "{label: a, published: 89.2}"))
    assert run("sweep.yaml", "--plan") == 0
    planned = capsys.readouterr().out
    assert "with 40 test objects" in planned
    assert "part of the set: 40 of 2,468 test objects" in planned
    said = table(capsys, "sweep.yaml")
    assert "part of the set: 40 of 2,468 test objects" in said
    assert "part of the set: 80 of 9,840 training objects" in said
    assert "no verdict on the paper's numbers: all cells: part of the set" in said
    assert "89.2" in said
    assert "reproduced" not in said


def test_limits_make_a_part_of_the_set_too(data, capsys):
    assert "part of the set: 20 of 2,468 test objects" in table(capsys, write(ONE_ROW), "dataset.test_limit=20")


def test_limits_above_what_is_there_are_refused(data, capsys):
    rows = ", ".join(f"{{label: {count} clouds, dataset.train_limit: {count}}}" for count in (40, 80, 1000))
    [line] = refused(capsys, write(f"{BASE}rows: [{rows}]\n"))
    assert line.startswith("1000 clouds / all: dataset.train_limit: 1000 asked for, there are 80 training clouds in modelnet40 in ")
    assert line.endswith(": at most 80, or leave it out to take all")
    # Validation clouds are held out of those that the limit leaves.
    [line] = refused(capsys, write(ONE_ROW), "dataset.train_limit=81", "dataset.val_fraction=0.5")
    assert "dataset.train_limit: 81 asked for, there are 80 training clouds" in line
    [line] = refused(capsys, write(ONE_ROW), "dataset.test_limit=41")
    assert "dataset.test_limit: 41 asked for, there are 40 test clouds" in line
    synthetic = ONE_ROW.replace("{name: modelnet40, ", "{name: synthetic, num_classes: 4, train_per_class: 5, train_limit: 21, ")
    [line] = refused(capsys, write(synthetic))
    assert "dataset.train_limit: 21 asked for, there are 20 training clouds in synthetic: at most 20" in line


def test_fewer_points_than_training_clouds_are_cut_from_are_marked(data, capsys):
    said = table(capsys, write(ONE_ROW), "dataset.presample=1200")
    assert "training clouds of 64 points, presample asks for 1,200" in said


def test_classes_without_test_objects_are_marked(data, capsys):
    labels = np.resize(np.arange(39), 40)
    with h5py.File(data / FOLDER / "ply_data_test0.h5", "r+") as file:
        file["label"][:] = labels[:, None]
    assert CLASSES[39] == "xbox"
    assert "39 of 40 classes have test objects" in table(capsys, write(ONE_ROW))


def test_a_number_about_other_data_is_shown_without_a_verdict(data, capsys):
    row = "{label: a, published: {paper: Any2Point, table: Table 1, row: Point-NN, dataset: ScanObjectNN}}"
    write(ONE_ROW.replace("{label: a}", row))
    assert run("sweep.yaml", "--plan") == 0
    assert "the number is about ScanObjectNN PB_T50_RS, the trials are on ModelNet40 test" in capsys.readouterr().out

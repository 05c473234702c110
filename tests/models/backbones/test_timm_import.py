"""timm imports beside any build of torch, and its own models are the reference for the stacks whose weights have its layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.models.backbones.helpers import block_outputs, check, ours


def run(code: str, *paths: Path) -> str:
    """What a fresh process prints, with these folders before all others on its path."""
    path = os.pathsep.join([*map(str, paths), str(Path(__file__).parents[3])])
    line = [sys.executable, "-c", "from pointsweep.models.backbones.timm_import import declare_torchvision_operators\n" + code]
    return subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}).stdout.strip()


def test_timm_and_the_models_of_transformers_import_after_the_declaration():
    pytest.importorskip("timm")
    code = (
        "declare_torchvision_operators(); declare_torchvision_operators()\n"
        "import timm, torchvision\n"
        "from transformers import CLIPVisionModel, Dinov2Model, RobertaModel\n"
        "print(timm.__version__, torchvision.__version__)"
    )
    assert len(run(code).split()) == 2


def a_package(folder: Path, *files: Path) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").touch()
    for number, file in enumerate(files):
        shutil.copy(file, folder / "torchvision" / f"_C{number or ''}.so")
    return folder


ASK = "print(declare_torchvision_operators() is not None, hasattr(torch.ops.torchvision, 'nms'))"


def test_a_compiled_part_that_loads_is_left_to_torchvision(tmp_path):
    """The stand-in's compiled part is a library that loads anywhere: torch's own."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    assert run(f"import torch; {ASK}", a_package(tmp_path, library)) == "False False"


def test_operators_are_declared_where_the_compiled_part_is_missing_or_does_not_load(tmp_path):
    assert run(f"import torch; {ASK}", a_package(tmp_path)) == "True True"
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    shutil.rmtree(tmp_path / "torchvision")
    assert run(f"import torch; {ASK}", a_package(tmp_path, broken)) == "True True"


MODELS = {
    "vit_in21k": "vit_base_patch16_224.augreg_in21k",
    "deit": "deit_base_patch16_224.fb_in1k",
    "dinov2": "vit_base_patch14_dinov2.lvd142m",
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_our_blocks_equal_those_of_timm(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(MODELS[name], pretrained=False, depth=2, num_classes=0).eval()
    for parameter in model.parameters():  # a fresh model's biases are 0, its scales 1: other values tell them apart
        parameter.add_(0.02 * torch.randn_like(parameter))
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, tmp_path / "timm.safetensors")
    backbone = ours(name, tmp_path / "timm.safetensors", num_blocks=2)

    tokens = torch.randn(2, 9, 768)
    expected, hidden = [], tokens
    for block in model.blocks:
        hidden = block(hidden)
        expected.append(hidden)

    check(block_outputs(backbone, tokens), expected)
    torch.testing.assert_close(backbone.norm(hidden), model.norm(hidden))
    assert torch.equal(backbone.cls_token, model.cls_token)

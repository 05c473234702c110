"""The counts that papers and their programs give for every method (spec 2.7, 3.4, 4.2, 5), built from configs on the meta device."""

from __future__ import annotations

import pytest
import torch

from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build, count_parameters

MAE = {
    "dataset": "scanobjectnn", "tokenizer": "patch", "backbone": "point_mae", "positions": {"injection": "each_block"},
    "head": {"bias": True, "order": "cls_max"},
}  # fmt: skip
BERT = MAE | {"backbone": "point_bert", "head": {"bias": True, "order": "cls_max", "kind": "one_layer"}}
M2AE = MAE | {"backbone": "point_m2ae", "tokenizer": {"name": "patch", "num_tokens": 512, "neighbours": 32}}
M2AE_PEFT = {
    "name": "point_peft", "num_prompts": 16, "depth": 15, "adapter_gate": True, "local_centers": [256, 64, 32],
    "propagation_scale": 0.2,
}  # fmt: skip
MODELNET_PEFT = {
    "name": "point_peft", "depth": 12, "prompt_kind": "gated", "bank_bottleneck": 16, "adapter_gate": True, "local_centers": [32],
}  # fmt: skip
APPT = {
    "dataset": "scanobjectnn", "tokenizer": "point_pn", "backbone": "vit_in21k", "method": "appt",
    "positions": {"kind": "learnable", "init_std": 0.0},
    "head": {"pool": "mean_plus_max", "hidden": 512, "last_hidden": 256, "input_dropout": 0.1, "dropout": 0.4, "bias": True},
}  # fmt: skip


def counts(trial: dict, num_classes: int):
    with torch.device("meta"):
        return count_parameters(build(trial_from_dict(trial), num_classes))


@pytest.mark.parametrize(
    ("trial", "num_classes", "with_head"),
    [
        (MAE | {"method": "full"}, 15, 22_093_327),
        (MAE | {"method": "point_peft"}, 15, 710_749),
        (MAE | {"method": MODELNET_PEFT}, 40, 853_308),
        (BERT | {"method": "point_peft"}, 15, 643_933),
        (BERT | {"method": "point_peft"}, 40, 650_358),
        (M2AE | {"method": M2AE_PEFT}, 15, 661_046),
        (MAE | {"method": "idpt"}, 15, 1_696_399),
        (MAE | {"method": "dapt"}, 15, 1_087_003),
        (APPT, 15, 3_951_698),
        (APPT, 40, 3_958_123),
    ],
)
def test_trained_values_with_the_head(trial, num_classes, with_head):
    assert counts(trial, num_classes).trainable == with_head


def test_appt_without_the_head():
    assert counts(APPT, 15).trainable_without_head == 3_421_251


def test_bitfit_adds_the_biases_of_the_blocks():
    any2point = {"dataset": "scanobjectnn", "tokenizer": "point_pn_light"}
    assert counts(any2point | {"backbone": "clip_text", "method": "bitfit"}, 15).trainable_without_head == 279_744 + 101_376
    base = counts(MAE | {"method": "head_only"}, 15).trainable
    assert counts(MAE | {"method": "bitfit"}, 15).trainable - base == 36_864


@pytest.mark.parametrize(
    ("backbone", "bottleneck", "without_head"),
    [
        ("imagebind_audio", 12, 874_536),
        ("imagebind_audio", 8, 800_760),
        ("deit", 8, 800_760),
        ("ssast", 8, 800_760),
        ("roberta", 16, 948_312),
    ],
)
def test_any2point_on_its_other_backbones(backbone, bottleneck, without_head):
    trial = {
        "dataset": "scanobjectnn",
        "tokenizer": "point_pn_light",
        "backbone": backbone,
        "method": {"name": "any2point", "bottleneck": bottleneck},
    }
    assert counts(trial, 15).trainable_without_head == without_head


def test_imagebinds_total_with_the_40_class_head():
    trial = {
        "dataset": "modelnet40", "tokenizer": "point_pn_light", "backbone": "imagebind_audio", "head": {"bias": True},
        "method": {"name": "any2point", "bottleneck": 8},
    }  # fmt: skip
    assert counts(trial, 40).total == 86_325_792

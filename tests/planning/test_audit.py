"""The audit finds every wiring fault injected here, one at a time, and nothing in the code as it is.

That it refuses no sweep of ours: end_to_end/test_command.py, which runs each in its smoke form.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from pointsweep.config import registry
from pointsweep.config.validation import trial_from_dict
from pointsweep.models import point_model as models
from pointsweep.models import positional_encoding as positions
from pointsweep.models.layers import Dropout, DropPath
from pointsweep.models.methods.any2point import LocalAttention
from pointsweep.models.methods.base import Method
from pointsweep.planning.audit import Arm, _broken, arm_of, audit
from pointsweep.planning.probe import probe

LIGHT = {"name": "point_pn_light", "num_tokens": 16, "neighbours": 8}
BASE = {"1d": ({"name": "tiny", "modality": "1d"}, LIGHT), "2d": ({"name": "tiny", "modality": "2d"}, LIGHT)}
BASE["3d"] = ({"name": "tiny", "modality": "3d"}, {"name": "patch", "num_tokens": 16, "neighbours": 8})


def config(modality: str, method: Any, settings: dict[str, Any]):
    """A trial with some dotted settings, e.g. {"positions.num_views": 3}."""
    backbone, tokenizer = BASE[modality]
    data: dict[str, Any] = {"dataset": {"name": "synthetic", "num_points": 128, "presample": 128}, "method": {"name": method}}
    data |= {"backbone": dict(backbone), "tokenizer": dict(tokenizer), "positions": {}, "head": {}}
    for key, value in settings.items():
        part, _, field = key.partition(".")
        if field:
            data[part][field] = value
        else:
            data[part] = value
    return arm_of(trial_from_dict(data))


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    """A model that was looked at with a planted fault in it must not be another test's answer."""
    yield
    forget()


def forget() -> None:
    probe.cache_clear()
    _broken.cache_clear()


def refusals(*configs) -> list[str]:
    forget()
    arms = [Arm(one, (f"arm {number}",)) for number, one in enumerate(configs)]
    return [finding.text for finding in audit(arms, {}) if finding.refuses]


# A knob that the code ignores: what is built, the setting, and its two values. The fault is a constructor that takes the first for both.
IGNORED = [
    ("any2point", "1d", "method.adapter", "guided", "mlp"),
    ("any2point", "1d", "method.local_aggregation", True, False),
    ("any2point", "2d", "method.ensemble", "adaptive", "mean"),
    ("any2point", "1d", "method.ensemble", "mean", "maxmean"),
    ("any2point", "1d", "method.local_space", "source", "3d"),
    ("any2point", "1d", "method.bottleneck", 16, 8),
    ("any2point", "1d", "method.dropout", 0.1, 0.3),
    ("any2point", "1d", "method.scale_factor", 0.3, 1.0),
    ("any2point", "2d", "method.coef_pro", 0.3, 0.7),
    ("any2point", "1d", "method.cell_size", 2.0, 20.0),
    ("any2point", "1d", "method.voxel_size", 0.08, 0.5),
    ("any2point", "2d", "method.cell_pooling", "mean", "mean_max"),
    ("any2point", "2d", "method.bn_nonempty_only", False, True),
    ("any2point", "1d", "method.adapter_init", "xavier", "zero_up"),
    ("head_only", "2d", "positions.num_views", 6, 3),
    ("head_only", "1d", "positions.kind", "virtual", "none"),
    ("head_only", "1d", "positions.kind", "virtual", "learnable"),
    ("head_only", "2d", "positions.injection", "once", "each_block"),
    ("head_only", "1d", "positions.view_set", "pointclip", "uniform"),
    ("head_only", "2d", "positions.translation", -1.8, -1.4),
    ("head_only", "1d", "tokenizer.neighbours", 8, 12),
    ("head_only", "1d", "tokenizer.num_tokens", 16, 12),
    ("head_only", "1d", "tokenizer.normalisation", "scan", "mn40"),
    ("head_only", "1d", "backbone.num_blocks", 2, 1),
    ("head_only", "1d", "backbone.drop_path", 0.0, 0.5),
    ("head_only", "1d", "backbone.attention_dropout", 0.0, 0.3),
    ("head_only", "1d", "head.order", "max_cls", "cls_max"),
    ("head_only", "1d", "head.dropout", 0.5, 0.2),
    ("head_only", "1d", "head.pool", "class_max", "mean_max"),
    ("lora", "1d", "method.rank", 4, 2),
    ("lora", "1d", "method.alpha", 4.0, 8.0),
    ("lora", "1d", "method.targets", ["q", "v"], ["q", "k"]),
    ("prompt", "1d", "method.depth", "deep", "shallow"),
    ("prompt", "2d", "method.num_prompts", 10, 5),
    ("adapter", "1d", "method.kind", "single", "houlsby"),
    ("adapter", "1d", "method.scale", 1.0, 0.1),
    ("point_peft", "3d", "method.depth", 2, 1),
    ("point_peft", "3d", "method.prompt_kind", "concat", "gated"),
    ("point_peft", "3d", "method.bank", True, False),
    ("point_peft", "3d", "method.local", True, False),
    ("point_peft", "3d", "method.local_pool", "max", "max_mean"),
    ("point_peft", "3d", "method.propagation_scale", 0.3, 0.1),
    ("point_peft", "3d", "method.bias_tuning", True, False),
    ("appt", "2d", "method.prompt_source", "shared", "none"),
    ("appt", "2d", "method.accumulate", True, False),
    ("appt", "2d", "method.prompt_update", "static", "per_block"),
    ("appt", "2d", "method.prompt_depth", 2, 1),
    ("idpt", "3d", "method.neighbours", 4, 2),
    ("dapt", "3d", "method.dynamic_scale", True, False),
]


def pair(case):
    method, modality, key, first, second = case
    extra = {"method.adapter": "guided"} if method == "any2point" and key.startswith("positions") else {}
    return [config(modality, method, extra | {key: value}) for value in (first, second)]


def ignore(monkeypatch, case) -> None:
    """The fault: whoever is built from the part's config gets the first value, whatever the file says."""
    method, modality, key, first, _ = case
    part, _, field = key.partition(".")
    backbone, tokenizer = BASE[modality]
    owner = {
        "method": lambda: registry.load("methods", method), "positions": lambda: positions.Positions, "head": lambda: models.Head,
        "tokenizer": lambda: registry.load("tokenizers", tokenizer["name"]), "backbone": lambda: registry.load("backbones", backbone["name"]),
    }[part]()  # fmt: skip
    original, value = owner.__init__, tuple(first) if isinstance(first, list) else first

    def broken(self, given, *rest):
        original(self, given.model_copy(update={field: value}), *rest)

    monkeypatch.setattr(owner, "__init__", broken)


@pytest.mark.parametrize("case", IGNORED, ids=lambda case: f"{case[0]}-{case[2]}-{case[4]}")
def test_an_ignored_knob_is_named_and_a_working_one_is_not(case, monkeypatch):
    assert refusals(*pair(case)) == []
    ignore(monkeypatch, case)
    found = refusals(*pair(case))
    assert any(f"{case[2]}: " in text and "arm 0 and arm 1 are the same model" in text for text in found), found


def _hook(monkeypatch, owner, name, broken) -> None:
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: broken(original, *args, **kwargs))


def never_applied(monkeypatch):
    monkeypatch.setattr(registry.load("methods", "any2point"), "after_ffn", Method.after_ffn)


def applied_in_the_first_block_only(monkeypatch):
    def broken(original, self, index, *rest):
        return original(self, index, *rest) if index == 0 else rest[0]

    _hook(monkeypatch, registry.load("methods", "adapter"), "after_ffn", broken)


def wrong_block(monkeypatch):
    _hook(
        monkeypatch, registry.load("methods", "adapter"), "after_ffn", lambda original, self, index, *rest: original(self, 0, *rest)
    )


def prompts_dropped_before_the_block(monkeypatch):
    monkeypatch.setattr(registry.load("methods", "prompt"), "before_block", Method.before_block)
    monkeypatch.setattr(registry.load("methods", "prompt"), "after_block", Method.after_block)


def prompts_without_gradient(monkeypatch):
    from pointsweep.models.methods import prompt

    _hook(monkeypatch, prompt, "insert_tokens", lambda original, tokens, new, at: original(tokens, new.detach(), at))


def views_without_gradient(monkeypatch):
    def broken(original, self, tokens, *rest):
        return tokens + (original(self, tokens, *rest) - tokens).detach()

    _hook(monkeypatch, registry.load("methods", "any2point"), "aggregate", broken)


def voxels_without_gradient(monkeypatch):
    _hook(monkeypatch, registry.load("methods", "any2point"), "_guide", lambda original, *args: original(*args).detach())


def head_frozen(monkeypatch):
    def broken(original, self, *args):
        original(self, *args)
        self.requires_grad_(False)

    _hook(monkeypatch, models.Head, "__init__", broken)


def tokenizer_without_gradient(monkeypatch):
    light = registry.load("tokenizers", "point_pn_light")

    def broken(original, self, points):
        with torch.no_grad():
            return original(self, points)

    _hook(monkeypatch, light, "forward", broken)


def class_token_left_out(monkeypatch):
    def broken(original, self, tokens, encoding):
        found = original(self, tokens, encoding)
        return torch.cat([found[:, :1].detach() * 0, found[:, 1:]], dim=1)

    _hook(monkeypatch, models.PointModel, "_start", broken)


def lora_without_its_update(monkeypatch):
    from pointsweep.models.methods.lora import LowRank

    monkeypatch.setattr(LowRank, "forward", lambda self, x: self.frozen(x))


def scale_over_the_batch(monkeypatch):
    from pointsweep.models import tokenizers

    monkeypatch.setattr(tokenizers, "normalise", lambda relative, kind, official: relative / (relative.std() + 1e-5))


def mean_of_the_batch_in_the_head(monkeypatch):
    def broken(original, self, tokens, extra):
        return original(self, tokens - tokens.mean(dim=0, keepdim=True), extra)

    _hook(monkeypatch, models.Head, "forward", broken)


def attention_across_the_batch(monkeypatch):
    from pointsweep.models.backbones.base import Attention

    monkeypatch.setattr(Attention, "across_batch", True)


def norm_by_the_batch_in_evaluation(monkeypatch):
    _hook(monkeypatch, nn.BatchNorm1d, "eval", lambda original, self: self)
    _hook(monkeypatch, nn.BatchNorm1d, "train", lambda original, self, mode=True: original(self, True))


def first_clouds_mean_for_all(monkeypatch):
    monkeypatch.setattr(Method, "takes_first_mean", True)


def nan_in_flat_neighbourhoods(monkeypatch):
    from pointsweep.models import tokenizers

    monkeypatch.setattr(tokenizers, "normalise", lambda relative, kind, official: relative * torch.nan)


STRUCTURAL = [  # fault, what is built, what the refusal says
    (never_applied, ("1d", "any2point", {"method.adapter": "mlp"}), "no gradient reaches method."),
    (applied_in_the_first_block_only, ("1d", "adapter", {}), "no gradient reaches method.own.1"),
    (wrong_block, ("2d", "adapter", {}), "no gradient reaches method.own.1"),
    (prompts_dropped_before_the_block, ("1d", "prompt", {}), "no gradient reaches method.prompts"),
    (prompts_without_gradient, ("2d", "prompt", {}), "no gradient reaches method.prompts"),
    (views_without_gradient, ("1d", "any2point", {}), "no gradient reaches method."),
    (voxels_without_gradient, ("1d", "any2point", {}), "no gradient reaches method.voxel_norms.0.weight"),
    (head_frozen, ("1d", "head_only", {}), "the head is not trained"),
    (tokenizer_without_gradient, ("1d", "head_only", {}), "no gradient reaches tokenizer."),
    (class_token_left_out, ("2d", "head_only", {}), "no gradient reaches cls_"),
    (lora_without_its_update, ("1d", "lora", {}), "no gradient reaches backbone."),
    (scale_over_the_batch, ("1d", "head_only", {}), "depend on the other clouds of its batch"),
    (mean_of_the_batch_in_the_head, ("1d", "any2point", {}), "depend on the other clouds of its batch"),
    (attention_across_the_batch, ("2d", "lora", {}), "depend on the other clouds of its batch"),
    (norm_by_the_batch_in_evaluation, ("1d", "head_only", {}), "depend on the other clouds of its batch"),
    (first_clouds_mean_for_all, ("1d", "head_only", {"head.pool": "mean_max"}), "depend on the other clouds of its batch"),
    (nan_in_flat_neighbourhoods, ("1d", "head_only", {}), "not finite"),
]


@pytest.mark.parametrize(("fault", "built", "said"), STRUCTURAL, ids=lambda value: getattr(value, "__name__", None))
def test_a_structural_fault_is_refused_and_the_sound_model_is_not(fault, built, said, monkeypatch):
    assert refusals(config(*built)) == []
    fault(monkeypatch)
    found = refusals(config(*built))
    assert any(said in text for text in found), found


def test_with_one_view_nothing_reaches_the_voxels_norms_and_that_is_no_fault():
    """Its weight is one whatever they say. With two it is not."""
    for views, without in ((1, 4), (2, 0)):
        made = config("1d", "any2point", {"positions.num_views": views})
        assert refusals(made) == []
        norms = {name: norm for name, norm in probe(made).gradients.items() if "voxel_norms" in name}
        assert len(norms) == 4
        assert sum(norm == 0 for norm in norms.values()) == without


def test_a_tensor_whose_parts_may_lack_a_gradient_needs_one_itself(monkeypatch):
    """Queries and keys may have nothing to choose from; the whole matrix always has its values."""
    method = registry.load("methods", "any2point")
    _hook(monkeypatch, LocalAttention, "forward", lambda original, *args: original(*args).detach())
    assert "attention.qkv_weight" in method.parts_lack_gradient
    assert "method.attention.qkv_weight" in probe(config("1d", "any2point", {})).unreached


def test_dropout_that_is_never_drawn_hides_its_rate(monkeypatch):
    case = ("adapter", "1d", "method.dropout", 0.1, 0.4)
    assert refusals(*pair(case)) == []
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x)
    assert any("method.dropout: 0.1 or 0.4 changes nothing" in text for text in refusals(*pair(case)))


def test_drop_path_that_drops_nothing_hides_its_rate(monkeypatch):
    case = ("head_only", "2d", "backbone.drop_path", 0.0, 0.3)
    monkeypatch.setattr(DropPath, "forward", lambda self, x: x)
    assert any("backbone.drop_path" in text for text in refusals(*pair(case)))


def test_an_official_form_that_leaks_is_said_with_its_amount_and_not_refused():
    made = config("1d", "any2point", {"compat": "official", "tokenizer.normalisation": "mn40"})
    findings = audit([Arm(made, ("row / column",))], {})
    assert [finding.refuses for finding in findings] == [False]
    assert "% of what its own move), as in the published program" in findings[0].text


def test_pretrained_and_random_weights_are_not_taken_for_one_arm():
    arms = [config("1d", "head_only", {"backbone": {"name": "minilm", "weights": weights}}) for weights in ("pretrained", "random")]
    assert refusals(*arms) == []


def test_a_look_at_a_wide_arm_takes_no_more_than_a_second_of_cpu_time():
    made = arm_of(
        trial_from_dict({"dataset": "scanobjectnn", "tokenizer": "point_pn_light", "backbone": "clip_text", "method": "any2point"})
    )
    probe(made)  # once for what the first call of every kernel costs
    probe.cache_clear()
    begun = time.process_time()
    probe(made)
    assert time.process_time() - begun < 3  # 0.7 s on a quiet core; a wide margin, for machines differ


def test_a_count_that_does_not_print_as_the_papers_is_said():
    from pointsweep.results.records import Published

    made = config("1d", "lora", {})
    counts = {made.key(): {"trainable": 948_312, "trainable_without_head": 484_681, "total": 1}}
    said = [f.text for f in audit([Arm(made, ("a",), (Published(90.0, 0.8, "Paper, Table 1"),))], counts)]
    assert said == ["a: 0.485M or 0.948M trained (without or with the head), Paper, Table 1 prints 0.8M"]
    assert audit([Arm(made, ("a",), (Published(90.0, 0.9, "Paper, Table 1"),))], counts) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer.neighbours": 200}, "cannot find 200 neighbours among 128 points"),
        ({"tokenizer.num_tokens": 64}, "cannot sample 256 points from clouds of 128"),
        ({"positions.view_set": "uniform", "backbone": {"name": "tiny", "modality": "2d"}}, "uniform views exist on lines"),
    ],
)
def test_a_model_that_cannot_read_its_clouds_is_refused_before_it_trains(settings, said):
    found = refusals(config("1d", "head_only", settings))
    assert len(found) == 1
    assert said in found[0]

"""The tuners of the library `peft` (release 0.21) that run on our blocks, and why the others do
not.

A tuner's fields in the library differ: `Tuner` says which of them is its size and which its scale.
Nothing here imports the library.
"""

from __future__ import annotations

from dataclasses import dataclass

LINEAR = ("q", "k", "v", "out", "fc1", "fc2")
NORMS = ("norm1", "norm2")


@dataclass(frozen=True)
class Tuner:
    """A tuner of peft, and how the library is asked for it."""

    kind: str
    """Its name in `peft.PeftType`."""
    size: str | None = "r"
    """The field that `method.r` sets: a rank, a block's width or a number of values; None: it has
    none.
    """
    alpha: str | None = None
    """The field that `method.alpha` sets; None: it has none."""
    ratio: int = 1
    """Alpha over size where the file gives no alpha: that of the library's own defaults."""
    settings: tuple[tuple[str, object], ...] = ()
    """Fields that are always the same."""
    targets: tuple[str, ...] = ("q", "v")
    """What it is put into where the file does not say."""
    allowed: tuple[str, ...] = LINEAR
    rewrites_weights: bool = False
    """It starts by taking its own update out of the frozen matrix, which must then be the trial's
    own.
    """
    starts_from_weights: bool = False
    """Its new values start as the frozen weights say, alike for every seed."""
    reads_weights: bool = False
    """Its construction looks at the values of the frozen matrix, which the meta device has not."""


LORA = "lora_alpha"

TUNERS: dict[str, Tuner] = {
    "lora": Tuner("LORA", alpha=LORA),
    "dora": Tuner("LORA", alpha=LORA, settings=(("use_dora", True),)),
    "rslora": Tuner("LORA", alpha=LORA, settings=(("use_rslora", True),)),
    "pissa": Tuner(
        "LORA",
        alpha=LORA,
        settings=(("init_lora_weights", "pissa"),),
        rewrites_weights=True,
        starts_from_weights=True,
    ),
    "olora": Tuner(
        "LORA",
        alpha=LORA,
        settings=(("init_lora_weights", "olora"),),
        rewrites_weights=True,
        starts_from_weights=True,
    ),
    "beft": Tuner("BEFT", size=None),
    "c3a": Tuner("C3A", size="block_size"),
    "delora": Tuner("DELORA"),
    "fourierft": Tuner("FOURIERFT", size="n_frequency"),
    "glora": Tuner("GLORA"),
    "gralora": Tuner("GRALORA", alpha="alpha", ratio=2),
    "hira": Tuner("HIRA"),
    "hra": Tuner("HRA"),
    "ia3": Tuner("IA3", size=None, targets=("k", "v", "fc2")),
    "ln_tuning": Tuner(
        "LN_TUNING", size=None, targets=NORMS, allowed=NORMS, starts_from_weights=True
    ),
    "loha": Tuner("LOHA", alpha="alpha"),
    "lokr": Tuner("LOKR", alpha="alpha"),
    "miss": Tuner("MISS"),
    "oft": Tuner("OFT", size="oft_block_size"),
    "peanut": Tuner("PEANUT"),
    "psoft": Tuner("PSOFT", alpha="psoft_alpha"),
    "randlora": Tuner("RANDLORA", alpha="randlora_alpha", ratio=20),
    "road": Tuner("ROAD", size="group_size"),
    # The mask is drawn from a seed of its own: what is saved of a trial then says all of it.
    "shira": Tuner("SHIRA", settings=(("random_seed", 0),), reads_weights=True),
    "supertuning": Tuner("SUPERTUNING", size=None),
    "waveft": Tuner("WAVEFT", size="n_frequency"),
}

_SHARED = (
    "its layers share tensors that lie on the library's own model class, which cannot be put into a"
    " backbone's blocks"
)
_PROMPTS = (
    "it works on the text prompts, embeddings or layers of a language model, which a point cloud"
    " has not"
)

REFUSED: dict[str, str] = {
    "boft": "it builds a CUDA extension when it is made, which not every machine can",
    "adalora": (
        "it moves rank between layers after every step and adds a term to the loss: calls that this"
        " training loop does not make, without which it is LoRA with a fixed rank; take lora"
    ),
    "adamss": "how much it trains depends on the values of the weights, so a plan cannot count it",
    "deft": (
        "at its start half of a gradient is zero but for rounding, of which AdamW makes whole"
        " steps: no machine would repeat another's result"
    ),
    "lily": (
        "its router averages over all clouds of a batch, so a cloud's prediction would depend on"
        " the others"
    ),
    "osf": (
        "it changes gradients on their way to the optimiser, for learning one task after another;"
        " the check of every plan that a step is AdamW's does not hold for it"
    ),
    "poly": "it needs the number of a task with every sample",
    "xlora": "it mixes adapters that were trained before",
    "frod": _SHARED,
    "pvera": _SHARED,
    "tinylora": _SHARED,
    "unilora": _SHARED,
    "vblora": _SHARED,
    "vera": _SHARED,
    "adaption_prompt": _PROMPTS,
    "cartridge": _PROMPTS,
    "cpt": _PROMPTS,
    "multitask_prompt_tuning": _PROMPTS,
    "p_tuning": _PROMPTS,
    "prefix_tuning": _PROMPTS,
    "prompt_tuning": f"{_PROMPTS}; take the method prompt",
    "shadow": _PROMPTS,
    "trainable_tokens": _PROMPTS,
}

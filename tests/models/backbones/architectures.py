"""Small architectures of the library transformers: what each is called, how small it is made, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {"image_size": 32, "patch_size": 8}
GROUPED = {**SMALL, **WORDS, "num_key_value_heads": 2, "head_dim": 8}
SOUND = {
    **SMALL,
    "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 4], "num_feat_extract_layers": 2, "vocab_size": 32,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, **WORDS,
}  # fmt: skip
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **IMAGE}


@dataclass(frozen=True)
class Architecture:
    """`positions` are those that are placed; empty: none can be."""

    name: str
    sizes: dict
    modality: str = "1d"
    causal: bool = False
    post_norm: bool = False
    positions: str = "table"
    fields: dict = field(default_factory=dict)

    @property
    def config(self) -> dict:
        sizes = [f"{key}={json.dumps(value)}" for key, value in self.sizes.items()]
        return {"name": "transformers", "model_type": self.name, "sizes": sizes, "weights": "reinitialised", **self.fields}


def _a(name: str, sizes: dict, **more) -> Architecture:
    return Architecture(name, sizes, **more)


ARCHITECTURES = [
    # Language, both ways, post-norm
    _a("bert", {**SMALL, **WORDS}, post_norm=True),
    _a("roberta", {**SMALL, **WORDS}, post_norm=True),
    _a("xlm-roberta", {**SMALL, **WORDS}, post_norm=True),
    _a("electra", {**SMALL, **WORDS, "embedding_size": 32}, post_norm=True),
    _a("ernie", {**SMALL, **WORDS}, post_norm=True),
    _a("data2vec-text", {**SMALL, **WORDS}, post_norm=True),
    _a("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **WORDS}, post_norm=True),
    _a("mpnet", {**SMALL, **WORDS}, post_norm=True, positions="table and relative"),
    _a(
        "deberta-v2",
        {**SMALL, **WORDS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64, "position_biased_input": False},
        post_norm=True,
        positions="",
    ),
    _a("nomic_bert", {**SMALL, **WORDS}, post_norm=True, positions="rotary"),
    _a("bart", BART, post_norm=True),
    # Language, both ways, pre-norm
    _a("modernbert", {**SMALL, **WORDS}, positions="rotary"),
    _a("esm", {**SMALL, **WORDS, "position_embedding_type": "rotary", "max_position_embeddings": 64}, positions="rotary"),
    _a("t5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64}, positions="relative"),
    # Language, causal
    _a("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **WORDS}, causal=True),
    _a(
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, **WORDS},
        causal=True,
    ),
    _a("gpt_neox", {**SMALL, **WORDS, "max_position_embeddings": 64}, causal=True, positions="rotary"),
    _a(
        "opt",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64, **WORDS},
        causal=True,
    ),
    _a("llama", GROUPED, causal=True, positions="rotary"),
    _a("mistral", GROUPED, causal=True, positions="rotary"),
    _a("qwen2", {**SMALL, **WORDS, "num_key_value_heads": 2}, causal=True, positions="rotary"),
    _a("qwen3", GROUPED, causal=True, positions="rotary"),
    _a("gemma2", GROUPED, causal=True, positions="rotary"),
    _a("gemma3_text", GROUPED, causal=True, positions="rotary"),
    _a("phi", {**SMALL, **WORDS}, causal=True, positions="rotary"),
    _a("phi3", {**SMALL, **WORDS, "num_key_value_heads": 2}, causal=True, positions="rotary"),
    _a("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, **WORDS}, causal=True, positions="ALiBi"),
    _a("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64}, causal=True, positions=""),
    _a("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **WORDS}, causal=True, positions="rotary"),
    _a("clip_text_model", {**SMALL, **WORDS, "max_position_embeddings": 16}, causal=True),
    # Vision
    _a("vit", {**SMALL, **IMAGE}, modality="2d"),
    _a("deit", {**SMALL, **IMAGE}, modality="2d"),
    _a("vit_mae", {**SMALL, **IMAGE, "decoder_num_hidden_layers": 1}, modality="2d"),
    _a("ijepa", {**SMALL, **IMAGE}, modality="2d"),
    _a("dinov2", {**DINO, "mlp_ratio": 2}, modality="2d"),
    _a("dinov2_with_registers", {**DINO, "mlp_ratio": 2}, modality="2d"),
    _a("dinov3_vit", {**SMALL, **IMAGE}, modality="2d", positions="rotary on a grid"),
    _a("beit", {**SMALL, **IMAGE, "use_relative_position_bias": True}, modality="2d", positions=""),
    _a("clip_vision_model", {**SMALL, **IMAGE}, modality="2d"),
    _a("siglip_vision_model", {**SMALL, **IMAGE}, modality="2d"),
    # Sound
    _a("whisper", {**BART, "num_mel_bins": 16, "max_source_positions": 32, "decoder_start_token_id": 1}),
    _a("wav2vec2", SOUND, post_norm=True, positions=""),
    _a("hubert", SOUND, post_norm=True, positions=""),
    _a(
        "audio-spectrogram-transformer",
        {**SMALL, "patch_size": 8, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        modality="2d",
    ),
]  # fmt: skip
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}

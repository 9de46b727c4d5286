"""Architectures of transformers as models small enough for a test: two blocks of hidden size 32, random weights."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

Make = Callable[..., PreTrainedModel]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # large enough that no two items score alike
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 256}
MULTIPLIED = {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}
GPT = {"num_key_value_heads": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 256},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 256, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True, **WINDOWED},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"pad_token_id": 0},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": GPT,
    "gpt_bigcode": GPT,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False},
    "stablelm": {"partial_rotary_factor": 0.5},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOWED,
    "granite": MULTIPLIED,
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "head_dim": 8, **WINDOWED},
    "starcoder2": {},
    "smollm3": {},
    "glm4": {"head_dim": 8},
    "exaone4": WINDOWED,
    "nemotron": {},
    "mixtral": EXPERTS,
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "granitemoe": {**MULTIPLIED, **EXPERTS},
    "olmoe": EXPERTS,
    "gpt_oss": {"head_dim": 8, **EXPERTS, **WINDOWED},
}
MIXTURES = {"mixtral", "qwen3_moe", "granitemoe", "olmoe", "gpt_oss"}
TRANSPOSED = {"gpt2"}


def make(family: str, vocabulary: int, seed: int = 3, **changes: Any) -> PreTrainedModel:
    """Frozen, in float32. Biases and norms are moved away from 0 and 1, so that one that is left out shows."""
    config = CONFIG_MAPPING[family](vocab_size=vocabulary, **SIZES | FAMILIES.get(family, {}) | changes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train(False)

"""Tiny real backbones for tests: random weights, real architecture."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from service.generation.backbone import Backbone
from service.generation.prompt import BOS, EOS, PAD, VOCABULARY

torch.set_num_threads(1)  # models this small only wait for one another's threads


def tiny_backbone(seed: int = 0, *, hidden: int = 32, layers: int = 2, tied: bool = True) -> Backbone:
    """A Llama with weights large enough that no two items score alike."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    model.train(False)
    return Backbone(model)

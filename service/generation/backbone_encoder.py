"""The base's language model as the text encoder: mean-pooled last hidden states, as the paper's authors take them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from service.catalog.semantic_ids import Float32, unit_rows
from service.errors import ArtifactError
from service.generation.backbone import load_backbone
from service.generation.loading import one_at_a_time

MOST_TOKENS = 256


class BackboneEncoder:
    """Means over at most 256 tokens, normalised; float32 [n, hidden].

    It holds no weights of its own: a base carries its model beside its codec, and what D_1 changed in that model (rows
    of semantic-ID tokens, an adapter) plays no part in a text.
    """

    kind = "backbone"
    instant = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        self._decoder: nn.Module = model.base_model
        # What the head reads: the last states of some OPT are narrower than its hidden size.
        rows: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]  # transformers
        self._device, self._hidden = model.device, rows.shape[1]
        self._tokenizer, self._batch_size = tokenizer, batch_size

    @classmethod
    def open(cls, folder: Path) -> Self:
        """From a verified base's model, float32 on the CPU: new items come a few at a time, and a GPU's memory is the
        engine's. Raises ArtifactError when the folder has no tokenizer or no model."""
        backbone = load_backbone(folder, torch.device("cpu"), torch.float32)
        try:
            with one_at_a_time():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder} holds no tokenizer ({error}); build the base again") from error
        return cls(backbone.model, tokenizer)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float32:
        found = np.zeros((len(texts), self._hidden), dtype=np.float32)
        if not texts:
            return found
        # A text that spells a token of the prompt's language (<a_1>, an end) is text.
        tokenized = self._tokenizer(list(texts), truncation=True, max_length=MOST_TOKENS, split_special_tokens=True)
        rows: list[list[int]] = tokenized["input_ids"]
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: len(rows[i]))
        for first in range(0, len(order), self._batch_size):
            part = order[first : first + self._batch_size]
            found[part] = self._means([rows[i] for i in part]).cpu().numpy()
        return unit_rows(found)

    def _means(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """float32 [n, hidden]. Padding stands on the right, where a causal model's other tokens do not see it."""
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for own, row in zip(tokens, rows, strict=True):
            own[: len(row)] = torch.tensor(row)
        real = (torch.arange(tokens.shape[1]) < lengths[:, None])[..., None].to(self._device)
        hidden = self._decoder(input_ids=tokens.to(self._device), use_cache=False).last_hidden_state.float()
        means: Tensor = (hidden * real).sum(1) / lengths[:, None].to(self._device)
        return means

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Float32]:
        return {}

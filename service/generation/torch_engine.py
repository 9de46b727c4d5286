"""The torch engine: in-process, LoRA merged, shared-cache beam search."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.trie import Trie
from service.generation.backbone import Backbone, load_backbone, merge_lora, pick_device, pick_dtype
from service.generation.beam import beam_search, pruned, trie_tensors
from service.generation.engine import Generated, GenerationRequest
from service.generation.llama import pack
from service.generation.prompt import PAD

if TYPE_CHECKING:
    from service.adapters.artifacts import VerifiedAdapter, VerifiedBase


class TorchModel:
    """A ServedModel over the weights that a merged backbone has when this is made."""

    def __init__(self, backbone: Backbone, base_id: str, adapter_version: str | None, least_beams: int) -> None:
        self.backbone = backbone
        self._llama = pack(backbone.model)
        self.base_id = base_id
        self.adapter_version = adapter_version
        self._least_beams = least_beams

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        """See ServedModel. Requests of unlike beam width run apart: an answer never depends on who shared its batch."""
        widths: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            widths.setdefault(max(self._least_beams, request.limit), []).append(i)
        answers: dict[int, Generated] = {}
        for width, places in widths.items():
            found = self._search([requests[i] for i in places], trie, width)
            answers |= dict(zip(places, found, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _search(self, requests: Sequence[GenerationRequest], trie: Trie, width: int) -> list[Generated]:
        device = self.backbone.device
        prompts, lengths = pad_prompts([self.backbone.prompt.encode(r.history) for r in requests])
        leaves, scores = beam_search(
            self.backbone,
            self._llama,
            prompts.to(device),
            lengths.to(device),
            trie_tensors(trie, device),
            pruned([r.excluded for r in requests], trie, device),
            width,
        )
        found = []
        for request, leaf, score in zip(requests, leaves.cpu().numpy(), scores.cpu().numpy(), strict=True):
            kept = np.isfinite(score)
            kept[request.limit :] = False
            found.append(Generated(leaf[kept], score[kept].astype(np.float32)))
        return found

    def close(self) -> None:
        del self.backbone, self._llama


class TorchEngine:
    """Keeps the base in memory once; every adapter is a copy of the adapted weights only."""

    def __init__(self, *, device: str, dtype: str, beams: int, threads: int = 0) -> None:
        self._device = pick_device(device)
        self._dtype = pick_dtype(dtype, self._device)
        self._beams = beams
        self._base: tuple[str, Backbone] | None = None
        self._lock = threading.Lock()
        if threads:
            torch.set_num_threads(threads)

    def load(self, base: "VerifiedBase", adapter: "VerifiedAdapter | None") -> TorchModel:
        with self._lock:
            if self._base is None or self._base[0] != base.base_id:
                self._base = (base.base_id, load_backbone(base.path / "model", self._device, self._dtype))
            backbone = self._base[1]
        if adapter is None:
            return TorchModel(backbone, base.base_id, None, self._beams)
        tensors = {name: torch.from_numpy(tensor) for name, tensor in adapter.tensors.items()}
        merged = merge_lora(backbone, tensors, adapter.config["lora_alpha"] / adapter.config["r"])
        return TorchModel(merged, base.base_id, adapter.version, self._beams)


def pad_prompts(prompts: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """int64 [batch, longest] padded on the right, and int64 [batch] lengths."""
    lengths = np.array([len(p) for p in prompts])
    padded = np.full((len(prompts), int(lengths.max())), PAD, dtype=np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return torch.from_numpy(padded), torch.from_numpy(lengths)

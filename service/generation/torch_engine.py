"""The torch engine: in-process, LoRA merged, shared-cache beam search."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.trie import Trie
from service.errors import ArtifactError
from service.generation.backbone import Backbone, load_backbone, match_lora, merge_lora, pick_device, pick_dtype
from service.generation.beam import beam_search, choice, pruned, trie_tensors
from service.generation.blocks import Blocks
from service.generation.engine import Batch, Generated, GenerationRequest
from service.generation.graphs import Graphs, Progress, Prompts, Sizes, Slot, silent
from service.generation.llama import Llama, Prefix, pack, read_prefix
from service.generation.prompt import PAD
from service.kit.machine import cpu_name

if TYPE_CHECKING:
    from service.adapters.artifacts import VerifiedAdapter, VerifiedBase


class TorchModel:
    """A ServedModel over the weights that a merged backbone has when this is made, or over those of a slot."""

    def __init__(
        self,
        backbone: Backbone,
        base_id: str,
        adapter_version: str | None,
        least_beams: int,
        captured: tuple[Graphs, Slot] | None = None,
        *,
        packed: Llama | None = None,
        share_prefix: bool = True,
    ) -> None:
        """captured: a slot with this model's weights, and what searches it; packed: those weights, packed.

        With either `backbone` need not be merged. share_prefix: read what all prompts begin with once, now.
        """
        self.backbone = backbone
        self.base_id = base_id
        self.adapter_version = adapter_version
        self._least_beams = least_beams
        self._captured = captured
        self._prefix: Prefix | None = None
        if captured is None:
            self._llama = packed or pack(backbone.model)
            shared = backbone.prompt.shared
            if self._llama is not None and share_prefix and len(shared):
                self._prefix = read_prefix(self._llama, torch.from_numpy(shared).to(backbone.device))
        else:
            self._llama, self._prefix = captured[1].llama, captured[1].prefix
        self._shared = 0 if self._prefix is None else len(self._prefix)
        self._loaded_threads = torch.get_num_threads()
        self._by = self._computed_by()

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        """See ServedModel. Requests of unlike beam width run apart: an answer never depends on who shared its batch,
        but for the last bits of its scores on how many they were and how long (Batch).

        Apart run also those with a penalty. On a GPU only plain requests are searched by captured programs.
        """
        if self._by["threads"] != torch.get_num_threads():  # the first model of a process is tuned (threads.py)
            self._by = self._computed_by()
        prompts = [self.backbone.prompt.encode(request.history)[self._shared :] for request in requests]
        parts: dict[tuple[int, bool, bool], list[int]] = {}
        for i, request in enumerate(requests):
            width = max(self._least_beams, request.limit)
            key = width, self._fits(prompts[i], request, width), request.penalty > 0
            parts.setdefault(key, []).append(i)
        answers: dict[int, Generated] = {}
        for (width, fits, _), places in parts.items():
            most = self._captured[0].largest_batch if self._captured is not None and fits else len(places)
            for first in range(0, len(places), most):
                own = places[first : first + most]
                search = self._replay if fits else self._search
                leaves, scores = search([prompts[i] for i in own], [requests[i] for i in own], trie, width)
                longest = max(len(requests[i].history) for i in own)
                for place, (i, leaf, score) in enumerate(zip(own, leaves, scores, strict=True)):
                    kept = np.isfinite(score)
                    kept[requests[i].limit :] = False
                    batch = Batch(len(own), place, longest, self._by)
                    answers[i] = Generated(leaf[kept], score[kept].astype(np.float32), batch)
        return [answers[i] for i in range(len(requests))]

    def _fits(self, prompt: NDArray[np.int64], request: GenerationRequest, width: int) -> bool:
        if self._captured is None or not request.is_plain:
            return False
        return self._captured[0].fits(len(prompt), len(request.excluded), width)

    def _replay(
        self, prompts: Sequence[NDArray[np.int64]], requests: Sequence[GenerationRequest], trie: Trie, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert self._captured is not None  # noqa: S101  # or nothing fits
        graphs, slot = self._captured
        return graphs.search(slot, Prompts(prompts, [request.excluded for request in requests]), trie, width)

    def _search(
        self, prompts: Sequence[NDArray[np.int64]], requests: Sequence[GenerationRequest], trie: Trie, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        nothing = np.empty(0, dtype=np.int64)
        excluded = [request.excluded if request.within is None else nothing for request in requests]
        device = self.backbone.device
        tokens, lengths = pad_prompts(prompts)
        leaves, scores = beam_search(
            self.backbone,
            self._llama,
            tokens.to(device),
            lengths.to(device),
            trie_tensors(trie, device),
            pruned(excluded, trie, device),
            width,
            self._prefix,
            choice([request.left for request in requests], [request.penalty for request in requests], trie, device),
        )
        return leaves.cpu().numpy(), scores.cpu().numpy()

    def _computed_by(self) -> Mapping[str, Any]:
        """What the rounding of this model's searches depends on, but for their shapes."""
        device = self.backbone.device
        return {
            "engine": "torch",
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "kind": device.type,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "dtype": str(next(self.backbone.model.parameters()).dtype).removeprefix("torch."),
            "loaded_threads": self._loaded_threads,
            "threads": torch.get_num_threads(),
            "captured": self._captured is not None,
        }

    def close(self) -> None:
        if self._captured is not None:
            graphs, slot = self._captured
            graphs.give_back(slot)
        del self.backbone, self._llama, self._prefix, self._captured


class TorchEngine:
    """Keeps the base in memory once; every adapter is a copy of the adapted weights only.

    On a GPU searches are captured as graphs when the first model of a base is loaded (service.generation.graphs).
    """

    def __init__(
        self,
        *,
        device: str,
        dtype: str,
        beams: int,
        threads: int = 0,
        sizes: Sizes | None = None,
        compiled: bool = True,
        on_capture: Progress = silent,
        history_items: int = 0,
    ) -> None:
        """sizes: of what is captured on a GPU; None: nothing. compiled: fuse the forward pass there first.

        history_items: most items of a prompt, to refuse a base that cannot read as many.
        """
        self._device = pick_device(device)
        self._dtype = pick_dtype(dtype, self._device)
        self._beams = beams
        self._base: tuple[str, Backbone, Graphs | None] | None = None
        self._lock = threading.Lock()
        self._sizes, self._compiled, self._on_capture = sizes, compiled, on_capture
        self._history_items = history_items
        if threads:
            torch.set_num_threads(threads)

    @property
    def no_second(self) -> str | None:
        """Why no model may be kept beside the one in service; None where one may."""
        if self._base is None or self._base[2] is None:
            return None
        # The second slot is what the next swap loads into (docs/decisions/0014).
        return (
            "this engine has two slots of captured searches on its GPU, and swaps need both: a candidate can be tried "
            "on replicas with ADAPTIDE_DEVICE=cpu or ADAPTIDE_ENGINE=vllm"
        )

    def load(self, base: "VerifiedBase", adapter: "VerifiedAdapter | None") -> TorchModel:
        """Raises ArtifactError for a base that does not load, or reads fewer items than prompts may have."""
        with self._lock:
            if self._base is None or self._base[0] != base.base_id:
                backbone = load_backbone(base.path / "model", self._device, self._dtype)
                most = backbone.most_items
                if most is not None and most < self._history_items:
                    raise ArtifactError(
                        f"the model of base {base.base_id} reads prompts of {most} items at most; set "
                        f"ADAPTIDE_HISTORY_ITEMS (now {self._history_items}) to that or less"
                    )
                self._base = (base.base_id, backbone, self._graphs(backbone))
            _, backbone, graphs = self._base
        if graphs is None:
            return self._loaded(base.base_id, backbone, adapter)
        version, merged = (None, backbone) if adapter is None else (adapter.version, None)
        with graphs.loading():
            if adapter is not None:
                merged = merge_lora(backbone, *_lora_of(adapter))
        assert merged is not None  # noqa: S101  # one of the two
        slot = graphs.take(merged)
        if slot is None:
            return TorchModel(merged, base.base_id, version, self._beams)
        return TorchModel(backbone, base.base_id, version, self._beams, (graphs, slot))

    def _loaded(self, base_id: str, backbone: Backbone, adapter: "VerifiedAdapter | None") -> TorchModel:
        """What serves without graphs: packed from base and adapter at once where that can be, so nothing is twice."""
        if adapter is None:
            return TorchModel(backbone, base_id, None, self._beams)
        tensors, scale = _lora_of(adapter)
        packed = pack(backbone.model, match_lora(backbone, tensors, scale))
        merged = backbone if packed is not None else merge_lora(backbone, tensors, scale)
        return TorchModel(merged, base_id, adapter.version, self._beams, packed=packed)

    def _graphs(self, backbone: Backbone) -> Graphs | None:
        if self._device.type != "cuda" or self._sizes is None or pack(backbone.model) is None:
            return None
        blocks = Blocks.best(self._device) if self._compiled else Blocks(compiled=False)
        return Graphs(backbone, self._sizes, blocks, on_capture=self._on_capture)


def _lora_of(adapter: "VerifiedAdapter") -> tuple[dict[str, Tensor], float]:
    tensors = {name: torch.from_numpy(tensor) for name, tensor in adapter.tensors.items()}
    return tensors, adapter.config["lora_alpha"] / adapter.config["r"]


def pad_prompts(prompts: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """int64 [batch, longest] padded on the right, and int64 [batch] lengths."""
    lengths = np.array([len(p) for p in prompts])
    padded = np.full((len(prompts), int(lengths.max())), PAD, dtype=np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return torch.from_numpy(padded), torch.from_numpy(lengths)

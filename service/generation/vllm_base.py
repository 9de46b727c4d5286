"""vLLM inside this process: one base, LoRA adapters beside it, log-probabilities of one level's codes.

Facts this rests on, read in vLLM 0.32 and tried on its CPU build (docs/decisions/0017): a request for one token with
`allowed_token_ids`, `logprobs=256` and processed log-probabilities answers with the log-softmax over those 256 ids; an
adapter that does not load raises in `add_lora`, where nothing waits for it; the prefix cache tells adapters apart by
name, so that a name is never used again.
"""

import gc
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import structlog
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from service.adapters.lora import expected_shapes
from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError, ConfigurationError
from service.generation.loading import one_at_a_time
from service.generation.prompt import Prompt, load_prompt

if TYPE_CHECKING:
    from service.adapters.artifacts import VerifiedAdapter, VerifiedBase

log = structlog.get_logger(__name__)

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM reserves room for
CPU_BLOCK = 32  # tokens; its kernels want a multiple of 32, and the prefix cache reuses whole blocks
CPU_KV_CACHE_GIB = 1.0
MOST_SEQUENCES = 256  # computed together; more wait inside vLLM
ADAPTERS_IN_A_BATCH = 2  # the one that serves and the one that is coming
ADAPTERS_HELD = 4
STUCK_S = 60.0  # without one finished request: something is wrong, and nobody waits that long

INSIDE = threading.Lock()
"""Held while anything of vLLM runs: its engines in one process share the present configuration and process groups."""

_numbers = itertools.count(1)  # of adapters: never the same twice in this process, whatever the engine


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """device: cpu or cuda. dtype: float32 or bfloat16.

    history_items: the longest history that is asked about; prompts are no longer than it takes.
    max_lora_rank: of an adapter that may be loaded; memory is reserved for it.
    memory_share: of a GPU, for weights and cache together. kv_cache_gib: the cache's size instead; 0: by the share.
    threads: on a CPU, 0: torch's own number. compiled: CUDA graphs and fused kernels, on a GPU.
    """

    device: str
    dtype: str
    history_items: int
    threads: int = 0
    tensor_parallel: int = 1
    memory_share: float = 0.45
    kv_cache_gib: float = 0.0
    max_lora_rank: int = 64
    compiled: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """An adapter that a VllmBase holds: vLLM's request for it and the folder it was loaded from."""

    request: Any
    folder: Path


class VllmBase:
    """One base in one vLLM engine. Whoever calls anything of it holds INSIDE."""

    def __init__(self, base: "VerifiedBase", options: VllmOptions) -> None:
        """Takes seconds on a CPU, up to minutes on a GPU. Raises ArtifactError when vLLM refuses the base."""
        self.base_id = base.base_id
        self.prompt = _prompt_of(base)
        self.models = 0  # in service that compute here
        self._dimensions = base.dimensions
        self._rank = next(rank for rank in RANKS if rank >= options.max_lora_rank)
        self._longest = self.prompt.length(options.history_items) + LEVELS
        self._engine = _start(base, options, self._longest, self._rank)
        self._params = [self._one_token(level) for level in range(LEVELS)]

    def add(self, adapter: "VerifiedAdapter") -> LoadedAdapter:
        """Load an adapter under a name, an id and a folder that were never used. Raises ArtifactError if it is refused.

        vLLM reads files; it gets the very tensors that were verified, written anew.
        """
        from vllm.lora.request import LoRARequest

        rank = self._check(adapter)
        number = next(_numbers)
        folder = Path(tempfile.mkdtemp(prefix=f"adaptide-lora-{number}-"))
        request = LoRARequest(f"{adapter.version}-{number}", number, str(folder))
        try:
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": rank,
                "lora_alpha": adapter.config["lora_alpha"],
                "target_modules": list(adapter.config["target_modules"]),
                "bias": "none",
            }
            (folder / "adapter_config.json").write_bytes(orjson.dumps(config))
            (folder / "adapter_model.safetensors").write_bytes(save(dict(adapter.tensors)))
            if not self._engine.add_lora(request):
                raise RuntimeError("its log says why")
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise  # a full disk is not the adapter's fault
        except Exception as error:
            self.remove(LoadedAdapter(request, folder))
            raise ArtifactError(f"vLLM refuses adapter {adapter.version}: {error}") from error
        return LoadedAdapter(request, folder)

    def remove(self, loaded: LoadedAdapter) -> None:
        """Free an adapter. It was loaded here, and nothing asks about it any more."""
        try:
            if loaded.request.lora_int_id in self._engine.list_loras():
                self._engine.remove_lora(loaded.request.lora_int_id)
        finally:
            shutil.rmtree(loaded.folder, ignore_errors=True)

    def level_scores(
        self, prompts: Sequence[list[int]], level: int, loaded: LoadedAdapter | None
    ) -> NDArray[np.float32]:
        """float32 [n, 256]: the log-softmax over the level's codes behind each prompt, all computed together.

        Raises ValueError for a prompt that is longer than the engine was made for, TimeoutError when it is stuck.
        """
        longest = max(map(len, prompts))
        if longest >= self._longest:
            raise ValueError(
                f"a prompt of {longest} tokens is too long: the engine was started for {self._longest - 1}"
            )
        from vllm.inputs.engine import tokens_input

        request = loaded.request if loaded else None
        waiting: dict[str, int] = {}
        try:
            for place, prompt in enumerate(prompts):
                name = str(next(_numbers))
                self._engine.add_request(name, tokens_input(prompt), self._params[level], lora_request=request)
                waiting[name] = place
            return self._collect(waiting, self.prompt.offsets[level])
        except BaseException:
            self._engine.abort_request(list(waiting))  # or the next search would compute what this one left
            raise

    def shut(self) -> None:
        """Free everything; the object is of no use afterwards."""
        engine, self._engine = self._engine, None
        try:
            engine.model_executor.shutdown()
        finally:
            del engine
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _collect(self, waiting: dict[str, int], offset: int) -> NDArray[np.float32]:
        scores = np.full((len(waiting), CODES), np.nan, dtype=np.float32)
        moved = time.monotonic()
        while waiting:
            finished = [output for output in self._engine.step() if output.finished]
            for output in finished:
                found = output.outputs[0].logprobs
                codes = np.array(found.token_ids) - offset  # the chosen token is in it twice
                scores[waiting.pop(output.request_id), codes] = found.logprobs
            if finished:
                moved = time.monotonic()
            elif time.monotonic() - moved > STUCK_S:
                raise TimeoutError(f"vLLM finished nothing for {STUCK_S:g} s; {len(waiting)} requests were dropped")
        if np.isnan(scores).any():
            raise RuntimeError("vLLM did not answer with every code of the level; is this another version of it?")
        return scores

    def _one_token(self, level: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        first = int(self.prompt.offsets[level])
        return SamplingParams(
            temperature=0,
            max_tokens=1,
            allowed_token_ids=list(range(first, first + CODES)),
            logprobs=CODES,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            skip_clone=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _check(self, adapter: "VerifiedAdapter") -> int:
        """The adapter's rank. vLLM itself would pad a tensor that is too small."""
        rank: int = adapter.config["r"]
        if rank > self._rank:
            raise ArtifactError(
                f"adapter {adapter.version} has rank {rank}, and vLLM was started for {self._rank} at most; "
                f"set ADAPTIDE_VLLM_MAX_LORA_RANK (up to {RANKS[-1]}) and restart"
            )
        wanted = expected_shapes(list(adapter.config["target_modules"]), rank, self._dimensions)
        found = {name: tensor.shape for name, tensor in adapter.tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ArtifactError(
                    f"adapter {adapter.version}: tensor {name!r} has shape {found.get(name)}, "
                    f"base {self.base_id} needs {wanted.get(name)}"
                )
        return rank


def _prompt_of(base: "VerifiedBase") -> Prompt:
    prompt = load_prompt(base.path / "model")
    held = orjson.loads((base.path / "model" / "config.json").read_bytes())
    rows = held.get("vocab_size")
    if not isinstance(rows, int) or rows < prompt.first_code_token + LEVELS * CODES:
        raise ArtifactError(
            f"base {base.base_id} has no rows for the {LEVELS * CODES} semantic-ID tokens; build it again"
        )
    return prompt


def _set_environment() -> None:
    """What vLLM reads from the environment: it computes in this process, and it reports to nobody."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a service has threads, which a fork does not survive
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the cores are shared with the rest of the service
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_HOST_IP": "127.0.0.1",  # where its processes meet; on their own they would meet on the outer interface
        "HF_HUB_OFFLINE": "1",  # it takes a path that is not there for the name of something to fetch
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _start(base: "VerifiedBase", options: VllmOptions, longest: int, rank: int) -> Any:
    _set_environment()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    on_cpu = options.device == "cpu"
    if on_cpu != current_platform.is_cpu():
        built = "a CPU (package vllm-cpu)" if current_platform.is_cpu() else f"{current_platform.device_name}"
        raise ConfigurationError(
            f"the vllm that is installed is for {built}, ADAPTIDE_DEVICE asks for {options.device}"
        )
    if on_cpu and options.threads:
        torch.set_num_threads(options.threads)
    cache_gib = options.kv_cache_gib or (CPU_KV_CACHE_GIB if on_cpu else 0.0)
    arguments: dict[str, Any] = {
        "model": str(base.path / "model"),
        "skip_tokenizer_init": True,  # prompts are token ids
        "generation_config": "vllm",
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "dtype": options.dtype,
        "max_model_len": longest,
        "max_num_seqs": MOST_SEQUENCES,
        "enable_prefix_caching": True,
        "max_logprobs": CODES,
        "logprobs_mode": "processed_logprobs",
        "enable_lora": True,
        "max_loras": ADAPTERS_IN_A_BATCH,
        "max_cpu_loras": ADAPTERS_HELD,
        "max_lora_rank": rank,
        "enforce_eager": on_cpu or not options.compiled,
        "tensor_parallel_size": options.tensor_parallel,
        "gpu_memory_utilization": options.memory_share,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments["block_size"] = CPU_BLOCK
    if cache_gib:
        arguments["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
    began = time.monotonic()
    try:
        with one_at_a_time():
            engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    except (ValueError, NotImplementedError, KeyError, AssertionError) as error:  # as it says that it cannot
        raise ArtifactError(f"vLLM refuses base {base.base_id}: {error}") from error
    # When it is collected it would shut down the process groups, which are those of every other engine here, too.
    engine.engine_core._finalizer.detach()
    log.info("vllm_started", base_id=base.base_id, dtype=options.dtype, seconds=round(time.monotonic() - began, 1))
    return engine

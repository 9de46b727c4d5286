"""Three small windows, each with its own circle of items, and a method that learns them one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.generation.backbone import Backbone
from service.generation.reference import score_items
from service.settings import Settings
from tests.models import tiny_backbone
from trainer.covariance import input_covariance
from trainer.evaluation import validation_loss
from trainer.examples import Examples, UserStream, build_examples
from trainer.fit import fit
from trainer.learn import update_fit_config
from trainer.lora import LoraBackbone, LoraTensors, save_adapter
from trainer.methods import make_method
from trainer.methods.base import Adapter, Method

CIRCLE = 12
USERS = 16
WINDOWS = 3
ITEMS = CIRCLE * WINDOWS
CODES = np.random.default_rng(0).integers(0, 256, size=(ITEMS, 4)).astype(np.int16)
HISTORY = CODES[[3, 4, 5]]
RANK = 3
CUMULATIVE = tuple(
    f"{family}-{scope}{inherit}"
    for family in ("sum-lora", "sd-lora", "inf-lora")
    for scope in ("all", "latest")
    for inherit in ("", "-inherit")
)


def settings(**changes: object) -> Settings:
    """Quick updates of adapters of rank 3, far enough to tell what trained from what did not."""
    chosen: dict[str, object] = {
        "lora_rank": RANK,
        "lora_alpha": 2 * RANK,
        "update_epochs": 3,
        "update_min_steps": 0,
        "update_batch_size": 4,
        "learning_rate_update": 2e-2,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
    }
    return Settings(home=Path("unused"), **(chosen | changes))  # type: ignore[arg-type]


@cache
def window(number: int) -> Examples:
    """Window 1, 2, ..: each user goes one by one round the circle of this window's own items, from an own start."""
    streams = []
    for user in range(USERS):
        walks = [CIRCLE * t + (user + np.arange(7)) % CIRCLE for t in range(number)]
        streams.append(UserStream(f"u{user}", np.concatenate([np.zeros(0, np.int64), *walks[:-1]]), walks[-1]))
    return build_examples(streams, history_items=10, min_events=5)


@dataclass(frozen=True, eq=False)
class Trained:
    """The adapter of one window and, for every item, the score of the very model that was trained, float64 [items]."""

    adapter: Adapter
    scores: NDArray[np.float64]
    started: Mapping[str, Tensor]
    """The window's own A and B when training began."""


def train(name: str, number: int, incumbent: Adapter | None, **changes: object) -> Trained:
    """What trainer.learn.adapt does for window `number`, with a look at the model before LoRA is taken off."""
    chosen = settings(method=name, **changes)
    method, examples, backbone = make_method(chosen), window(number), tiny_backbone()
    lora = wrapped(backbone, method, incumbent, chosen)
    stage = method.begin(lora, incumbent, lambda: input_covariance(lora, examples.training, CODES))
    started = {name: p.detach().clone() for name, p in lora.parameters.items()}
    fit(
        backbone,
        stage.parameters,
        lambda random: examples.training,
        CODES,
        update_fit_config(chosen, len(examples.training), backbone.device),
        evaluate=lambda: -validation_loss(backbone, examples.validation, CODES),
        penalty=stage.penalty,
        penalty_weight=stage.weight,
        relative=stage.relative,
    )
    adapter = Adapter(lora.tensors(), lora.scale, method.name, stage.finish())
    return Trained(adapter, scores(backbone), started)


def wrapped(backbone: Backbone, method: Method, incumbent: Adapter | None, chosen: Settings) -> LoraBackbone:
    rank = method.rank(incumbent, chosen.lora_rank)
    scale = incumbent.scale if incumbent else chosen.lora_alpha / chosen.lora_rank
    return LoraBackbone(backbone, rank=rank, alpha=scale * rank, dropout=chosen.lora_dropout, seed=chosen.seed)


@cache
def chain(name: str) -> tuple[Trained, ...]:
    """The method over all windows, each from the adapter that the one before left; the first from the bare base."""
    done: list[Trained] = []
    for number in range(1, WINDOWS + 1):
        done.append(train(name, number, done[-1].adapter if done else None))
    return tuple(done)


def scores(backbone: Backbone) -> NDArray[np.float64]:
    return score_items(backbone, HISTORY, CODES)


def own_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The A and B that the adapter's own window trained: the last ones of its state."""
    last = max(key.split("/")[0] for key in adapter.state if key.startswith("adapter."))
    return {key.split("/", 1)[1]: t for key, t in adapter.state.items() if key.startswith(f"{last}/")}


def modules_of(tensors: LoraTensors) -> list[str]:
    return [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]


def change(tensors: LoraTensors, module: str, scale: float) -> Tensor:
    """s B A of one module, float64 [d_out, d_in]."""
    a, b = tensors[f"{module}.lora_A.weight"].double(), tensors[f"{module}.lora_B.weight"].double()
    return scale * b @ a


def written_and_read(adapter: Adapter, folder: Path) -> Adapter:
    """The adapter and its state through their files."""
    save_adapter(folder, adapter.tensors, scale=adapter.scale)
    save_file(dict(adapter.state), folder / "state.safetensors")
    tensors = load_file(folder / "adapter_model.safetensors")
    return Adapter(tensors, adapter.scale, adapter.method, load_file(folder / "state.safetensors"))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Equal names, equal numbers, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def learnt_windows(found: Sequence[Trained]) -> list[Adapter]:
    return [trained.adapter for trained in found]

"""The bases of a backtest: one for each seed, fitted on D_1 once and kept in the output folder."""

import hashlib
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from service.catalog.index import CatalogueIndex, IndexedItem
from service.errors import Conflict, DatasetError
from service.generation.backbone import Backbone, pick_device
from service.kit.files import publish_folder
from service.settings import Settings
from trainer.backtest.data import BacktestData, popularity_before, streams
from trainer.base import tokenize
from trainer.base_training import open_language_model, train_backbone
from trainer.checkpoints import Checkpoints
from trainer.examples import build_examples
from trainer.group import ALONE
from trainer.language_model import LanguageModel, load_trainable
from trainer.methods.base import Adapter
from trainer.progress import Report
from trainer.recipe import BaseRecipe

ADAPTER = "adapter.safetensors"
DECIDES = {
    *("seed", "history_items", "min_events_per_user", "popularity_half_life", "learning_rate_base"),
    *("embedding_dropout", "residual_dropout", "lora_rank", "lora_alpha", "lora_dropout"),
}
"""Settings that a base depends on."""


@dataclass(frozen=True, eq=False)
class BacktestBase:
    """The frozen base of one seed. index: the catalogue with its codes; no item of it is ever hidden.

    adapter: adapter 1, which D_1 gave a language model; None where it changes nothing.
    """

    backbone: Backbone
    index: CatalogueIndex
    adapter: Adapter | None


def base_folder(out: Path, seed: int) -> Path:
    return out / "bases" / f"seed-{seed}"


def fit_base(data: BacktestData, recipe: BaseRecipe, settings: Settings, folder: Path, report: Report) -> None:
    """Tokenizer (unless the data has codes) and backbone from block 1 alone; writes `folder` whole or not at all.

    What an unfinished training has come to is kept beside it, and goes when the base is there. Raises Conflict for one
    that is there and was made from something else.
    """
    interval = settings.checkpoint_interval.total_seconds()
    kept, kept_codes = (
        Checkpoints(folder.with_name(f".{what}-{folder.name}"), "", interval) for what in ("checkpoints", "codes")
    )
    wanted = made_from(data, recipe, settings)
    if folder.exists():
        _check_made_from(folder, wanted, f"delete {folder}, and what was learnt on it in tasks, or give another --out")
        kept.clear()
        kept_codes.clear()
        return
    language_model = open_language_model(recipe, settings)
    codes = data.codes
    if codes is None:
        codes = _fitted_codes(data, recipe, settings, language_model, report, kept_codes if interval > 0 else None)
    index = index_of(data, codes)
    examples = build_examples(
        streams(data, 0), history_items=settings.history_items, min_events=settings.min_events_per_user
    )
    if not examples.training:
        raise DatasetError(
            f"no user of block 1 has {settings.min_events_per_user} interactions, so there is nothing to train a base "
            "on; give more data or lower ADAPTIDE_MIN_EVENTS_PER_USER"
        )
    held_out = (*examples.validation, *examples.test)
    popularity = popularity_before(data, 1, settings.popularity_half_life, without=held_out)
    trained = train_backbone(
        recipe,
        examples,
        index,
        popularity,
        settings,
        language_model,
        report,
        kept=kept.keyed(wanted) if interval > 0 else None,
    )
    fitted = trained.fit
    with publish_folder(folder) as staging:
        trained.save(staging / "model")
        if trained.adapter is not None:
            notes = {"scale": repr(trained.adapter.scale), "method": trained.adapter.method}
            tensors = {name: tensor.contiguous() for name, tensor in trained.adapter.tensors.items()}
            save_tensors(tensors, staging / ADAPTER, metadata=notes)
        save_file({"codes": codes}, staging / "codes.safetensors")
        measured = {
            "best_epoch": fitted.best_epoch,
            "made_from": wanted,
            "validation": fitted.scores,
            "losses": fitted.losses,
            "seconds": round(fitted.seconds, 1),
            "parameters": sum(p.numel() for p in trained.backbone.model.parameters()),
        }
        (staging / "base.json").write_bytes(orjson.dumps(measured))
    kept.clear()
    kept_codes.clear()


def _fitted_codes(
    data: BacktestData,
    recipe: BaseRecipe,
    settings: Settings,
    language_model: LanguageModel | None,
    report: Report,
    kept: Checkpoints | None,
) -> NDArray[np.int16]:
    """Codes of all items, fitted on those of D_1: minutes on a CPU, so they too outlast a base that was killed."""
    if kept is not None:
        source = recipe.language.source if recipe.language else None
        kept = kept.keyed(data.digest, asdict(recipe.tokenizer), source, settings.seed)
        if (state := kept.load(ALONE)) is not None:
            found: NDArray[np.int16] = state[0]["codes"].numpy()
            return found
    used = {data.items[row].item_id for row in np.unique(data.blocks[0].item).tolist()}
    _, by_id = tokenize(data.items, used, recipe.tokenizer, settings.seed, report, language_model)
    codes = np.array([by_id[item.item_id] for item in data.items], dtype=np.int16)
    if kept is not None:
        kept.save(0, {"codes": torch.from_numpy(codes)}, {}, ALONE)
    return codes


def open_base(data: BacktestData, folder: Path, settings: Settings) -> BacktestBase:
    """What fit_base wrote."""
    backbone = load_trainable(folder / "model", pick_device(settings.device))
    adapter = None
    if (folder / ADAPTER).exists():
        with safe_open(folder / ADAPTER, framework="pt") as file:
            notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        adapter = Adapter(tensors, float(notes["scale"]), notes["method"])
    return BacktestBase(backbone, open_index(data, folder), adapter)


def open_index(data: BacktestData, folder: Path) -> CatalogueIndex:
    """The catalogue under the codes that fit_base wrote."""
    codes: NDArray[np.int16] = load_file(folder / "codes.safetensors")["codes"]
    return index_of(data, codes)


def made_from(data: BacktestData, recipe: BaseRecipe, settings: Settings) -> str:
    """A digest of everything that decides a base."""
    decides = {"data": data.digest, "recipe": asdict(recipe)} | settings.model_dump(mode="json", include=DECIDES)
    return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()


def take_base(other: Path, folder: Path, wanted: str) -> None:
    """Copy an earlier backtest's base of the same seed, if there is one. Raises Conflict for one of something else."""
    if folder.exists() or not other.exists():
        return
    _check_made_from(other, wanted, "leave --bases out to fit it anew")
    with publish_folder(folder) as staging:
        shutil.copytree(other, staging, dirs_exist_ok=True)


def _check_made_from(folder: Path, wanted: str, remedy: str) -> None:
    if orjson.loads((folder / "base.json").read_bytes()).get("made_from") != wanted:
        raise Conflict(f"{folder} was made from other data or with other settings; {remedy}")


def index_of(data: BacktestData, codes: NDArray[np.int16]) -> CatalogueIndex:
    """The whole catalogue, as the paper's candidates are: items of later blocks included."""
    rows = (
        IndexedItem(item.item_id, item.title, item.categories, True, (a, b, c, d))
        for item, (a, b, c, d) in zip(data.items, codes.tolist(), strict=True)
    )
    return CatalogueIndex(tuple(rows), 0, "backtest")

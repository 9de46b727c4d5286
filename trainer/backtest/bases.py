"""The bases of a backtest: one for each seed, fitted on D_1 once and kept in the output folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from service.catalog.index import CatalogueIndex, IndexedItem
from service.errors import DatasetError
from service.generation.backbone import Backbone, load_backbone, pick_device
from service.kit.files import publish_folder
from service.settings import Settings
from trainer.backtest.data import BacktestData, popularity_before, streams
from trainer.base import BaseRecipe, tokenize, train_backbone
from trainer.examples import build_examples
from trainer.progress import Report
from trainer.tiny import save_model


@dataclass(frozen=True, eq=False)
class BacktestBase:
    """The frozen base of one seed. index: the catalogue with its codes; no item of it is ever hidden."""

    backbone: Backbone
    index: CatalogueIndex


def base_folder(out: Path, seed: int) -> Path:
    return out / "bases" / f"seed-{seed}"


def fit_base(data: BacktestData, recipe: BaseRecipe, settings: Settings, folder: Path, report: Report) -> None:
    """Tokenizer (unless the data has codes) and backbone from block 1 alone; writes `folder` whole or not at all."""
    if folder.exists():
        return
    codes = data.codes
    if codes is None:
        used = {data.items[row].item_id for row in np.unique(data.blocks[0].item).tolist()}
        _, by_id = tokenize(data.items, used, recipe.tokenizer, settings.seed, report)
        codes = np.array([by_id[item.item_id] for item in data.items], dtype=np.int16)
    index = index_of(data, codes)
    examples = build_examples(
        streams(data, 0), history_items=settings.history_items, min_events=settings.min_events_per_user
    )
    if not examples.training:
        raise DatasetError(
            f"no user of block 1 has {settings.min_events_per_user} interactions, so there is nothing to train a base "
            "on; give more data or lower ADAPTIDE_MIN_EVENTS_PER_USER"
        )
    popularity = popularity_before(data, 1, settings.popularity_half_life)
    backbone, fitted = train_backbone(recipe, examples, index, popularity, settings, report)
    with publish_folder(folder) as staging:
        save_model(backbone, staging / "model")
        save_file({"codes": codes}, staging / "codes.safetensors")
        measured = {
            "best_epoch": fitted.best_epoch,
            "validation_ndcg@10": fitted.scores,
            "losses": fitted.losses,
            "seconds": round(fitted.seconds, 1),
            "parameters": sum(p.numel() for p in backbone.model.parameters()),
        }
        (staging / "base.json").write_bytes(orjson.dumps(measured))


def open_base(data: BacktestData, folder: Path, settings: Settings) -> BacktestBase:
    """What fit_base wrote."""
    codes: NDArray[np.int16] = load_file(folder / "codes.safetensors")["codes"]
    backbone = load_backbone(folder / "model", pick_device(settings.device), torch.float32)
    return BacktestBase(backbone, index_of(data, codes))


def index_of(data: BacktestData, codes: NDArray[np.int16]) -> CatalogueIndex:
    """The whole catalogue, as the paper's candidates are: items of later blocks included."""
    rows = (
        IndexedItem(item.item_id, item.title, item.categories, True, (a, b, c, d))
        for item, (a, b, c, d) in zip(data.items, codes.tolist(), strict=True)
    )
    return CatalogueIndex(tuple(rows), 0, "backtest")

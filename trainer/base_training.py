"""Training a base's backbone, in this process or in several, up to a model folder."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from service.catalog.index import CatalogueIndex
from service.generation.backbone import Backbone, load_backbone, pick_device
from service.recommend.ranking import Float64
from service.settings import Settings
from trainer.checkpoints import Checkpoints
from trainer.examples import Examples, sample_cases
from trainer.fit import FitConfig, FitReport
from trainer.group import ALONE, Group
from trainer.language_base import train_language_base
from trainer.language_check import check_passes
from trainer.language_model import STORED, LanguageModel, load_language_model, save_language_model
from trainer.methods.base import Adapter
from trainer.processes import Together
from trainer.progress import Report, silent
from trainer.recipe import BaseRecipe
from trainer.sharding import shard, whole_weights
from trainer.tiny import low_precision_pays, save_model, train_base
from trainer.together import without_store

VALIDATION_USERS = 300


@dataclass(frozen=True, slots=True, eq=False)
class TrainedBase:
    """backbone: frozen. adapter: adapter 1, None where it changes nothing. save: writes the model folder."""

    backbone: Backbone
    adapter: Adapter | None
    fit: FitReport
    save: Callable[[Path], None]


def open_language_model(recipe: BaseRecipe, settings: Settings) -> LanguageModel | None:
    """What the recipe starts from, on its device; None for tiny.

    Called before anything else: one that cannot be had, or cannot do what is asked of it, should not cost an hour
    first. Raises ConfigurationError.
    """
    if recipe.language is None:
        return None
    found = load_language_model(recipe.language.source, settings.seed)
    nn.Module.to(found.backbone.model, pick_device(settings.device))
    check_passes(found.backbone, recipe.language.source, settings.history_items)
    return found


def train_backbone(
    recipe: BaseRecipe,
    examples: Examples,
    index: CatalogueIndex,
    popularity: Float64,
    settings: Settings,
    model: LanguageModel | None,
    report: Report = silent,
    *,
    group: Group = ALONE,
    kept: Checkpoints | None = None,
) -> TrainedBase:
    """The recipe's backbone, trained on D_1's examples. model: what open_language_model gave; trained in place.

    group, kept: see trainer.fit.fit.
    """
    device = pick_device(settings.device) if group.size == 1 else group.device
    validation = sample_cases(examples.validation, VALIDATION_USERS, settings.seed)
    on_step = partial(report, "base")
    if recipe.language is not None and model is not None:
        if kept is not None:
            kept = kept.keyed(_summary(model.backbone))
        if group.sharded:
            shard(model.backbone, group)
        adapter, fitted = train_language_base(
            model,
            recipe.language,
            examples,
            validation,
            index.codes,
            settings,
            device=device,
            low_precision=low_precision_pays(device),
            on_step=on_step,
            group=group,
            kept=kept,
        )
        return TrainedBase(model.backbone, adapter, fitted, partial(save_language_model, model))
    if kept is not None:
        kept = kept.keyed(asdict(recipe.tiny), recipe.piece, index.codes, popularity)
    backbone, fitted = train_base(
        recipe.tiny,
        examples,
        index,
        popularity,
        _fit_config(recipe, settings),
        validation=validation,
        piece=recipe.piece,
        device=device,
        on_step=on_step,
        group=replace(group, sharded=False),  # it fits anywhere
        kept=kept,
    )
    return TrainedBase(backbone, None, fitted, partial(save_model, backbone))


def train_backbone_together(
    together: Together,
    recipe: BaseRecipe,
    examples: Examples,
    index: CatalogueIndex,
    popularity: Float64,
    settings: Settings,
    folder: Path,
    report: Report = silent,
    kept: Checkpoints | None = None,
) -> TrainedBase:
    """The same in several processes, each of which opens the language model itself. folder: new, where they put it."""
    arguments = (recipe, examples, index, popularity, without_store(settings), folder, kept)
    adapter, fitted = together.run(_train_into, arguments, report)
    dtype = torch.float32 if recipe.language is None else STORED
    backbone = load_backbone(folder, pick_device(settings.device), dtype)
    return TrainedBase(backbone, adapter, fitted, partial(_copied, folder))


def _copied(folder: Path, target: Path) -> None:
    shutil.copytree(folder, target)


def _train_into(
    group: Group,
    report: Report,
    recipe: BaseRecipe,
    examples: Examples,
    index: CatalogueIndex,
    popularity: Float64,
    settings: Settings,
    folder: Path,
    kept: Checkpoints | None,
) -> tuple[Adapter | None, FitReport]:
    """A rank's part of train_backbone_together: trains, and as rank 0 saves."""
    model = None
    if recipe.language is not None:
        model = load_language_model(recipe.language.source, settings.seed)
    trained = train_backbone(recipe, examples, index, popularity, settings, model, report, group=group, kept=kept)
    if recipe.language is None or not group.sharded:
        if group.rank == 0:
            trained.save(folder)
        return trained.adapter, trained.fit
    weights = whole_weights(trained.backbone, keep=group.rank == 0)
    if group.rank == 0:
        fresh = load_language_model(recipe.language.source, settings.seed)  # whole again: only its weights are not
        with torch.no_grad():
            for name, parameter in fresh.backbone.model.named_parameters():
                parameter.copy_(weights[name])
        save_language_model(fresh, folder)
    return trained.adapter, trained.fit


def _summary(backbone: Backbone) -> list[tuple[str, float, float]]:
    """Tells the weights that training starts from apart from others without hashing gigabytes."""
    named = backbone.model.named_parameters()
    return [(name, float(p.double().sum()), float(p.double().abs().sum())) for name, p in named]


def _fit_config(recipe: BaseRecipe, settings: Settings) -> FitConfig:
    return FitConfig(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=settings.learning_rate_base,
        weight_decay=recipe.weight_decay,
        warmup=0.05,
        embedding_dropout=settings.embedding_dropout,
        residual_dropout=settings.residual_dropout,
        evaluate_every=recipe.evaluate_every,
        patience=recipe.patience,
        low_precision=low_precision_pays(pick_device(settings.device)),
        seed=settings.seed,
    )

"""Building a base: all that is stored is D_1; codec, backbone and first adapter come out, published and active."""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from service.adapters.artifacts import ArtifactStore
from service.adapters.repository import NewAdapter, NewBase
from service.catalog import repository as catalog
from service.catalog.index import CatalogueIndex
from service.catalog.repository import Codes, StoredItem
from service.catalog.semantic_ids import Codec
from service.catalog.service import item_text
from service.errors import DatasetError
from service.events import repository as events
from service.generation.backbone_encoder import BackboneEncoder
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend.popularity import Popularity
from service.recommend.ranking import Float64
from service.recommend.votes import count_through
from service.settings import Settings
from service.users import service as users
from service.users.service import Learners
from service.windows import service as windows
from trainer.base_training import TrainedBase, open_language_model, train_backbone, train_backbone_together
from trainer.checkpoints import kept_training
from trainer.datasets import DatasetItem
from trainer.evaluation import metrics, model_ranks, popularity_ranks
from trainer.examples import build_examples, sample_cases
from trainer.language_base import TrainMode
from trainer.language_model import LanguageModel
from trainer.learn import Steps, served
from trainer.lora import LoraBackbone, is_transposed, save_adapter
from trainer.processes import Together
from trainer.progress import Report, silent
from trainer.recipe import TINY, BaseRecipe
from trainer.streams import load_streams
from trainer.tokenizer.fit import TokenizerConfig, fit_codec

FRESH = "fresh"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class BuiltBase:
    """metrics: Hit and NDCG of base and popularity on D_1's test items. steps: duration and outcome of each."""

    base_id: str
    adapter_version: str
    revision: int
    metrics: dict[str, Any]
    steps: list[dict[str, Any]]


def build_base(
    database: Database,
    artifacts: ArtifactStore,
    settings: Settings,
    clock: Clock,
    recipe: BaseRecipe,
    *,
    actor: str,
    report: Report = silent,
) -> BuiltBase:
    """Train on every event stored so far and serve the result.

    Raises DatasetError when there is too little to learn from; then nothing is published.
    """
    steps, together = Steps(), Together.of(settings)
    kept = kept_training(settings, "base", "D_1")
    with steps.step("load"):
        language_model = open_language_model(recipe, settings)
        through_seq = windows.horizon(database)
        with database.read() as connection:
            used = events.item_ids_through(connection, through_seq)
            items = catalog.changed_since(connection, 0)
    with steps.step("tokenizer"):
        codec, codes = tokenize(items, used, recipe.tokenizer, settings.seed, report, language_model)
        index = CatalogueIndex.of(items, codes)
    with steps.step("examples") as row:
        with database.read() as connection:
            erasures = users.count_erasures(connection)
        data = load_streams(database, settings, index, 0, through_seq)
        examples = build_examples(
            data.streams,
            history_items=settings.history_items,
            min_events=settings.min_events_per_user,
            user_share=settings.window_max_user_share,  # alone: D_1 is far more than a window
        )
        row |= {"users": len(data.streams), "events": data.events, "targets": examples.targets}
        if not examples.training:
            raise DatasetError(
                f"no user has {settings.min_events_per_user} events with known items, so there is nothing to train a "
                "base on; import items and more events first (ADAPTIDE_MIN_EVENTS_PER_USER sets the number)"
            )
        held_out = {(case.user_id, index.items[case.target].item_id) for case in (*examples.validation, *examples.test)}
        counted = Popularity(settings.popularity_half_life)
        with database.read(patient=True) as connection:
            count_through(connection, counted, through_seq, settings.ignored_event_types, without=held_out)
        popularity = counted.by_row(index)
    with tempfile.TemporaryDirectory(prefix="adaptide-") as folder:
        with steps.step("fit") as row:
            if together is None:
                trained = train_backbone(
                    recipe, examples, index, popularity, settings, language_model, report, kept=kept
                )
            else:
                language_model = None  # the processes open their own
                trained = train_backbone_together(
                    together, recipe, examples, index, popularity, settings, Path(folder) / "trained", report, kept
                )
            row |= {"best_epoch": trained.fit.best_epoch, "scores": trained.fit.scores, "losses": trained.fit.losses}
        with steps.step("evaluate"):
            trained.save(Path(folder) / "base" / "model")  # first: it is measured in the precision that is stored
            measured = _evaluate(trained, examples.test, index, popularity, settings)
        with steps.step("publish"):
            base, adapter = _publish(Path(folder), artifacts, trained, codec, settings, recipe, measured)
        stamped = replace(base, trained_through=data.newest)
        first = replace(adapter, trained_through=data.newest)
    with steps.step("activate"):
        activation = windows.install_base(
            database,
            clock,
            stamped,
            through_seq=through_seq,
            actor=actor,
            adapter=first,
            first=lambda connection: catalog.set_codes(
                connection, base.base_id, codes, revision=catalog.next_revision(connection)
            ),
        )
    if kept is not None:
        kept.clear()
    if missed := windows.missed_by_base(database, through_seq):
        advice = "stop the updater while a base is built, and windows wait for it; or build another one"
        log.warning("base_lacks_events", base_id=base.base_id, events=missed, advice=advice)
    learners = Learners(tuple(stream.user_id for stream in data.streams), erasures)
    if gone := users.count_erased(database, learners):  # not discarded: hours of work, and every base learns from all
        log.warning("base_learnt_from_erased_users", base_id=base.base_id, users=gone, advice="build another one")
    return BuiltBase(base.base_id, adapter.adapter_version, activation.revision, measured, steps.rows)


def tokenize(
    items: Sequence[StoredItem | DatasetItem],
    used: Collection[str],
    config: TokenizerConfig,
    seed: int,
    report: Report,
    model: LanguageModel | None = None,
) -> tuple[Codec, dict[str, Codes]]:
    """The codec, fitted on D_1's items, and codes for all items, those of D_1 first.

    model: what open_language_model gave, not trained yet, for texts that it encodes.
    """
    first = sorted((item for item in items if item.item_id in used), key=lambda item: item.item_id)
    rest = sorted((item for item in items if item.item_id not in used), key=lambda item: item.item_id)
    texts = {item.item_id: item_text(item.title, item.categories, item.brand, item.description) for item in items}
    codec = fit_codec(
        [texts[item.item_id] for item in first],
        config,
        seed=seed,
        language_model=BackboneEncoder(model.backbone.model, model.tokenizer) if model else None,
        on_step=lambda step, loss: report("semantic IDs", step, config.steps),
    )
    ordered = [item.item_id for item in [*first, *rest]]
    return codec, dict(zip(ordered, codec.assign([texts[item_id] for item_id in ordered], ()), strict=True))


def _evaluate(
    trained: TrainedBase, test: tuple[Any, ...], index: CatalogueIndex, popularity: Float64, settings: Settings
) -> dict[str, Any]:
    cases = sample_cases(test, settings.evaluation_users, settings.seed)
    model = served(trained.backbone, trained.adapter, settings.beams)
    return {
        "users": len(cases),
        "base": metrics(model_ranks(model, cases, index, popularity)).as_dict(),
        "popularity": metrics(popularity_ranks(cases, index, popularity)).as_dict(),
        "best_epoch": trained.fit.best_epoch,
        "validation": trained.fit.scores,
        "seconds": round(trained.fit.seconds, 1),
    }


def _publish(
    folder: Path,
    artifacts: ArtifactStore,
    trained: TrainedBase,
    codec: Codec,
    settings: Settings,
    recipe: BaseRecipe,
    measured: dict[str, Any],
) -> tuple[NewBase, NewAdapter]:
    """The base, whose model is in the folder, and its first adapter, written immutably (METHODS.md)."""
    codec.save(folder / "base" / "codec")
    language = recipe.language
    metadata = {
        "backbone": language.source if language else TINY,
        "train": language.train.value if language else TrainMode.FULL.value,
        "prompt": trained.backbone.prompt.kind,
        "history_items": settings.history_items,
        "quantiser": recipe.tokenizer.quantiser.value,
        "text_encoder": recipe.tokenizer.text_encoder.value,
        "seed": settings.seed,
    }
    base = artifacts.publish_base(folder / "base", metadata)
    rank, alpha, dropout = settings.lora_rank, settings.lora_alpha, settings.lora_dropout
    method, tensors = FRESH, None
    if trained.adapter is not None:
        method, tensors = trained.adapter.method, trained.adapter.tensors
    else:
        lora = LoraBackbone(trained.backbone, rank=rank, alpha=alpha, dropout=dropout, seed=settings.seed)
        tensors = lora.tensors()
        lora.unwrap()
    transposed = is_transposed(trained.backbone.model)
    save_adapter(folder / "adapter", tensors, scale=alpha / rank, dropout=dropout, transposed=transposed)
    adapter = artifacts.publish_adapter(folder / "adapter", {"base_id": base.id, "method": method}, 0)
    return (
        NewBase(base.id, base.digest, metrics=measured),
        NewAdapter(adapter.id, base.id, adapter.digest, method, hyperparameters={"rank": rank, "alpha": alpha}),
    )

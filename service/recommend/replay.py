"""A past recommendation computed again from its id, by the very code that answers requests (docs/time-travel.md).

The catalogue of its revision, the user's past and popularity up to the events that it had seen, the model's files and
the shape of the pass are put in the place of those of now. What can no longer be had is said, never made up.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore
from service.catalog.index import CatalogueIndex
from service.catalog.past import index_at
from service.errors import ArtifactError, CatalogueError, ConfigurationError, NotFound
from service.generation.again import InShape
from service.generation.engine import ServedModel
from service.kit.db import Database
from service.recommend import repository
from service.recommend.basis import LEFT_OUT, MOST_CANDIDATES_KEPT, request_of
from service.recommend.history import UserPast, load_past
from service.recommend.popularity import Popularity
from service.recommend.ranking import Float64
from service.recommend.schemas import RecommendationReply, RecommendationRequest, Strategy
from service.recommend.service import Recommender
from service.recommend.votes import count_through
from service.settings import Settings
from service.users import repository as users

log = structlog.get_logger(__name__)

NO_DEADLINE = timedelta(days=1)

Ranked = list[tuple[str, float]]


@dataclass(slots=True)
class Replay:
    """row: the stored one. now: what came of it again, None where it could not be computed.

    impossible: why not. notes: what is not as it was then, so that a difference need not be a defect.
    """

    row: Mapping[str, Any]
    request: RecommendationRequest | None = None
    catalogue: Mapping[str, Any] = field(default_factory=dict)
    past: Mapping[str, Any] = field(default_factory=dict)
    now: RecommendationReply | None = None
    impossible: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def then(self) -> Ranked:
        return [(item_id, score) for item_id, score in self.row["items"]]

    @property
    def again(self) -> Ranked | None:
        return None if self.now is None else [(item.item_id, item.score) for item in self.now.items]

    @property
    def identical(self) -> bool:
        """The same items in the same order with the same scores, to the last bit."""
        return self.again == self.then

    @property
    def largest_score_difference(self) -> float | None:
        """Among items that are in both lists; None without any."""
        before, after = dict(self.then), dict(self.again or ())
        return max((abs(after[item] - before[item]) for item in before.keys() & after.keys()), default=None)


def find_recommendation(database: Database, recommendation_id: str) -> Mapping[str, Any]:
    """Its row with `details`, see tables. Raises NotFound, StoreUnavailable."""
    with database.read() as connection:
        row = repository.find(connection, recommendation_id)
    if row is None:
        raise NotFound(
            "no recommendation has this id: it was removed with its user or by ADAPTIDE_RECOMMENDATION_RETENTION, or "
            "could not be stored when it was made"
        )
    return row


def replay(
    database: Database, artifacts: ArtifactStore, settings: Settings, recommendation_id: str, *, explain: bool = False
) -> Replay:
    """Compute a recommendation again. explain: with the reasons of each item.

    Raises NotFound for an unknown id, StoreUnavailable; whatever else is in the way is in the result.
    """
    found = Replay(find_recommendation(database, recommendation_id))
    row, details = found.row, found.row["details"]
    if row["request"] is None:
        found.impossible = "an earlier version of Adaptide made it, which did not keep what was asked for"
        return found
    settings = settings.model_copy(update={"exploration_share": 0.0})  # what was asked for says it where it was not 0
    if details is None:
        found.notes.append("the settings that it was computed with were not kept: those of now are taken")
    else:
        settings = settings.model_copy(update=_settings_then(details))
    if row["request"].get("filters", {}).get("item_ids") is LEFT_OUT:
        found.impossible = f"it was a choice out of more than {MOST_CANDIDATES_KEPT} candidates, which are not kept"
        return found
    try:
        found.request = request_of(row["user_id"], row["request"], row["history"])
    except ValueError:
        found.impossible = "a later version of Adaptide made it, whose requests have fields that this one does not know"
        return found
    asked = found.request.model_copy(update={"explain": explain})
    computed = row["computed"]
    try:
        with database.read(patient=True) as connection:
            index = index_at(connection, row["catalog_revision"], row["base_id"] or computed.get("codes"))
            past = _past_then(connection, settings, found)
            popularity = _popularity_then(connection, settings, index, computed.get("popular"), found)
        found.catalogue = {"revision": index.revision, "items": len(index.items), "searched": index.trie.leaves}
        model = _load(database, artifacts, settings, found)
    except (CatalogueError, ArtifactError, ConfigurationError) as error:
        found.impossible = error.detail
        return found
    except Exception as error:  # an engine fails in its own ways: out of memory, a driver, a missing library
        log.exception("replay_failed", recommendation_id=recommendation_id)
        found.impossible = f"the engine could not load it ({type(error).__name__}); see the log"
        return found
    try:
        found.now = _answer(settings, row, asked, index, past, popularity, model)
    finally:
        if model is not None:
            model.close()
    if "copied_from" in computed:
        found.notes.append(f"the reply was a kept answer, made for recommendation {computed['copied_from']}")
    return found


def _settings_then(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "beams": details["beams"],
        "history_items": details["history_items"],
        "seen_items": details["seen_items"],
        "ignored_event_types": frozenset(details["ignored_event_types"]),
        "popularity_half_life": timedelta(seconds=details["popularity_half_life_s"]),
        "exploration_events": details["exploration_events"],
    }


def _past_then(connection: Connection, settings: Settings, found: Replay) -> UserPast:
    """The user's past up to the last event that was seen; what was shown to the model is known in any case."""
    row, asked = found.row, found.request
    assert asked is not None  # noqa: S101  # the caller has made it
    if asked.user_id is None or (asked.history is not None and asked.include_seen):
        return UserPast((), ())
    through_seq, seen = found.row["computed"].get("past", (0, 0))
    past = load_past(
        connection,
        asked.user_id,
        history_items=settings.history_items,
        seen_items=settings.seen_items,
        ignored_types=settings.ignored_event_types,
        through_seq=through_seq,
    )
    found.past = {"through_seq": through_seq, "seen": seen, "seen_again": len(past.seen)}
    if len(past.seen) == seen:
        return past
    found.notes.append(
        f"the user's events up to number {through_seq} held {seen} items then and hold {len(past.seen)} now: they were "
        "removed since (retention, erasure), or one came in late"
    )
    return UserPast(tuple(row["history"]), past.seen)  # what the prompt held is kept with the recommendation


def _popularity_then(
    connection: Connection, settings: Settings, index: CatalogueIndex, basis: Sequence[int] | None, found: Replay
) -> Float64:
    """float64 [rows]: popularity counted again through the event that it had reached."""
    weights = np.zeros(len(index.items))
    if basis is None:
        if found.row["strategy"] == Strategy.POPULAR:
            found.notes.append("through which event popularity was counted is not known")
        return weights
    through_seq, rows = basis
    counted = Popularity(settings.popularity_half_life)
    first, after = count_through(connection, counted, through_seq, settings.ignored_event_types)
    known = CatalogueIndex(index.items[:rows], index.revision, index.base_id)
    weights[:rows] = counted.by_row(known)
    if first > 1 or after < through_seq:
        kept = f"those from {first} to {after} are still there" if first else "none of them is still there"
        found.notes.append(
            f"popularity had counted the events through number {through_seq}; {kept}, so it is no longer what it was"
        )
    erasures = users.read_erasures(connection)
    if erasures is not None and erasures.last_at is not None and erasures.last_at >= found.row["created_at"]:
        found.notes.append("users were erased since: popularity had counted their events, which are gone")
    return weights


def _load(database: Database, artifacts: ArtifactStore, settings: Settings, found: Replay) -> ServedModel | None:
    """Its model; None for a popular list. Raises ArtifactError, ConfigurationError."""
    base_id, version = found.row["base_id"], found.row["adapter_version"]
    if base_id is None:
        return None
    from service.generation.load_again import load_as  # loads torch, which a popular list does without

    with database.read() as connection:
        base = adapters.find_base(connection, base_id)
        adapter = None if version is None else adapters.find_adapter(connection, version)
    if base is None or (version is not None and adapter is None):
        raise ArtifactError(f"base {base_id} or adapter {version} is not registered in this store")
    opened = artifacts.open_base(base.base_id, base.digest)
    tensors = None if adapter is None else artifacts.open_adapter(adapter.adapter_version, adapter.digest, opened)
    by = (found.row["details"] or {}).get("computed_by")
    model, notes = load_as(settings, by, opened, tensors)
    found.notes += notes
    return model


def _answer(
    settings: Settings,
    row: Mapping[str, Any],
    request: RecommendationRequest,
    index: CatalogueIndex,
    past: UserPast,
    popularity: Float64,
    model: ServedModel | None,
) -> RecommendationReply:
    computed = row["computed"]
    shapes = computed.get("batches") or ([computed["batch"]] if "batch" in computed else [])

    def taken(value: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(value)
        return future

    made_at: datetime = row["created_at"]
    recommender = Recommender(
        settings=settings.model_copy(update={"request_deadline": NO_DEADLINE, "explain_timeout": NO_DEADLINE}),
        clock=lambda: made_at,
        index=lambda: index,
        popularity=lambda _: popularity,
        batcher=InShape(model, shapes),
        read_past=lambda _: taken(past),
        record=lambda _: taken(None),
        active_base=lambda: row["base_id"],
        trained_through=lambda base_id, version: None,
        interaction=lambda: computed.get("interaction", 0.0),
    )
    return asyncio.run(recommender.recommend(request, row["recommendation_id"]))

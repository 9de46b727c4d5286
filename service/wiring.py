"""What the endpoints work with, built once for each application."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Protocol

import numpy as np
from fastapi import Depends, Request

from service.access.service import AccessService
from service.adapters import repository as adapters
from service.adapters.activation import Activation
from service.adapters.artifacts import ArtifactStore
from service.adapters.bus import Change
from service.adapters.place import PlaceWatch, open_artifacts
from service.catalog.encoding import CodecFollower
from service.catalog.follower import CatalogueFollower
from service.catalog.semantic_ids import Codec, load_codec
from service.catalog.service import ActiveCodec
from service.errors import ArtifactError
from service.generation.batching import Batcher
from service.generation.engine import GenerationRequest, ServedModel
from service.generation.select import SelectedEngine
from service.health import Check, PartState, Readiness, schema_check, store_check
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend.fallback import PopularityFollower
from service.recommend.history import history_reader
from service.recommend.record import recommendation_writer
from service.recommend.service import Recommender
from service.replicas.service import Heartbeat
from service.settings import Settings
from service.shared import Shared, make_shared
from service.telemetry import BATCH_SIZE, RECOMMENDATIONS

QUEUED_BATCHES = 8  # requests that may wait, in full batches; more would outlast their deadline anyhow


class Background(Protocol):
    """A thread that lives as long as the application."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """Ask it to end and wait until it has."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that an endpoint may call. One for each application, shared by its threads."""

    settings: Settings
    database: Database
    prompt: Database
    """The same store for callers that cannot wait (ADAPTIDE_DATABASE_ANSWER_TIMEOUT)."""
    clock: Clock
    artifacts: ArtifactStore
    access: AccessService
    readiness: Readiness
    recommender: Recommender
    codec: Callable[[], ActiveCodec | None]
    """The tokenizer of the active base, None while there is none."""
    pointer_moved: Callable[[], None]
    """Called after this process moved the active pointer: the model follows at once instead of at the next poll."""
    catalogue: CatalogueFollower
    """This process's snapshot of the catalogue, to be refreshed after own writes."""
    shared: Shared
    """What is shared with other replicas, to be told of own writes after their commit."""
    background: tuple[Background, ...] = field(default=())
    """Started in this order after the store was checked, stopped in reverse."""


def build_services(settings: Settings, database: Database, clock: Clock) -> Services:
    """The services over one store. Connects to nothing yet."""
    artifacts = open_artifacts(settings)
    prompt = database.within(settings.database_answer_timeout.total_seconds())  # for what a request waits for
    catalogue = CatalogueFollower(database, settings.poll_interval)
    # First, for the parts below are given its caches; what it calls in its turn is called once all are there.
    shared = make_shared(
        settings,
        {Change.POINTER: lambda: activation.notify(), Change.CATALOGUE: catalogue.notify},
        lambda: (activation.status().base_id, activation.status().adapter_version),
    )
    codec = CodecFollower(database, settings.poll_interval, lambda base_id: _open_codec(database, artifacts, base_id))
    popularity = PopularityFollower(
        database,
        settings.popularity_half_life,
        settings.popularity_refresh,
        settings.ignored_event_types,
        lambda: catalogue.index,
        shared.popularity,
    )

    engine = SelectedEngine(settings)

    def warm(model: ServedModel) -> None:
        index = catalogue.refresh()  # so that codes and model are of one base from the first request on
        history = index.codes[index.with_codes(np.arange(len(index.items)))[: settings.history_items]]
        nothing = np.empty(0, np.int64)
        # One past item reads all weights, and takes half as long from those who are being answered.
        model.generate([GenerationRequest(history[-1:], settings.beams, nothing)], index.trie)
        whole = GenerationRequest(history, settings.beams, nothing)
        engine.tune(lambda: model.generate([whole], index.trie))

    activation = Activation(database, clock, artifacts, engine, settings.poll_interval, warm=warm)
    batcher = Batcher(
        activation.lease_model,
        settings.batch_max_requests,
        QUEUED_BATCHES * settings.batch_max_requests,
        on_batch=BATCH_SIZE.observe,
        least_beams=settings.beams,
    )
    histories = history_reader(prompt, settings, shared.pasts if settings.history_cache else None)
    records = recommendation_writer(prompt)

    def trained_through(base_id: str, version: str | None) -> datetime | None:
        status = activation.status()
        return status.trained_through if (status.base_id, status.adapter_version) == (base_id, version) else None

    recommender = Recommender(
        settings=settings,
        clock=clock,
        index=lambda: catalogue.index,
        popularity=popularity.by_row,
        batcher=batcher,
        read_past=histories.ask,
        record=records.ask,
        active_base=lambda: activation.status().base_id,
        trained_through=trained_through,
        on_reply=lambda strategy, reason: RECOMMENDATIONS.labels(strategy, reason or "").inc(),
        answers=shared.answers,
    )
    checks: dict[str, Check] = {
        "store": store_check(prompt),
        "schema": schema_check(prompt),
        "engine": _engine_check(activation),
    }
    background: list[Background] = [*shared.background, histories, records, batcher, catalogue, popularity, codec]
    background += [activation, Heartbeat(database, clock, settings.heartbeat_interval, activation.status)]
    if shared.link is not None:
        checks["redis"] = shared.health
    if artifacts.remote is not None:
        watch = PlaceWatch(artifacts)
        checks["artifacts"] = _place_check(watch)
        background.append(watch)
    return Services(
        settings=settings,
        database=database,
        prompt=prompt,
        clock=clock,
        artifacts=artifacts,
        access=AccessService(prompt, clock),
        readiness=Readiness(checks),
        recommender=recommender,
        codec=codec.active,
        pointer_moved=activation.notify,
        catalogue=catalogue,
        shared=shared,
        background=tuple(background),
    )


def _open_codec(database: Database, artifacts: ArtifactStore, base_id: str) -> Codec:
    with database.read() as connection:
        base = adapters.find_base(connection, base_id)
    if base is None:
        raise ArtifactError(f"base {base_id} is active but not registered; restore the database or build a base")
    opened = artifacts.open_base(base_id, base.digest)  # named: its folder is there for as long as it lives
    return load_codec(opened.path / "codec")


def _engine_check(activation: Activation) -> Check:
    """Ready once the pointer was acted upon; a replica that serves something older is ready and says so."""

    def check() -> PartState:
        status = activation.status()
        state = "popular" if status.base_id is None else "base" if status.adapter_version is None else "personalised"
        if not status.settled:
            return PartState(False, "loading", "the active model is being loaded")
        return PartState(True, f"{state}, degraded" if status.degraded else state, status.degraded)

    return check


def _place_check(watch: PlaceWatch) -> Check:
    """Ready whatever it says: what serves is held here; new adapters wait until the place answers again."""

    def check() -> PartState:
        trouble = watch.trouble
        return PartState(True, "ok") if trouble is None else PartState(True, "unreachable, degraded", trouble)

    return check


async def services_of(request: Request) -> Services:
    """The application's services, as a dependency."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]

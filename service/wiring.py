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
    background: tuple[Background, ...] = field(default=())
    """Started in this order after the store was checked, stopped in reverse."""


def build_services(settings: Settings, database: Database, clock: Clock) -> Services:
    """The services over one store. Connects to nothing yet."""
    artifacts = open_artifacts(settings)
    catalogue = CatalogueFollower(database, settings.poll_interval)
    codec = CodecFollower(database, settings.poll_interval, lambda base_id: _open_codec(database, artifacts, base_id))
    popularity = PopularityFollower(
        database,
        settings.popularity_half_life,
        settings.popularity_refresh,
        settings.ignored_event_types,
        lambda: catalogue.index,
    )

    engine = SelectedEngine(settings)

    def warm(model: ServedModel) -> None:
        index = catalogue.refresh()  # so that codes and model are of one base from the first request on
        history = index.codes[index.with_codes(np.arange(len(index.items)))[: settings.history_items]]
        request = GenerationRequest(history, settings.beams, np.empty(0, np.int64))
        model.generate([request], index.trie)
        engine.tune(lambda: model.generate([request], index.trie))

    activation = Activation(database, clock, artifacts, engine, settings.poll_interval, warm=warm)
    batcher = Batcher(
        activation.lease_model,
        settings.batch_max_requests,
        QUEUED_BATCHES * settings.batch_max_requests,
        on_batch=BATCH_SIZE.observe,
        least_beams=settings.beams,
    )
    histories = history_reader(database, settings)
    records = recommendation_writer(database)

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
    )
    checks: dict[str, Check] = {
        "store": store_check(database),
        "schema": schema_check(database),
        "engine": _engine_check(activation),
    }
    background: list[Background] = [histories, records, batcher, catalogue, popularity, codec, activation]
    background.append(Heartbeat(database, clock, settings.heartbeat_interval, activation.status))
    if artifacts.remote is not None:
        watch = PlaceWatch(artifacts)
        checks["artifacts"] = _place_check(watch)
        background.append(watch)
    return Services(
        settings=settings,
        database=database,
        clock=clock,
        artifacts=artifacts,
        access=AccessService(database, clock),
        readiness=Readiness(checks),
        recommender=recommender,
        codec=codec.active,
        pointer_moved=activation.notify,
        catalogue=catalogue,
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

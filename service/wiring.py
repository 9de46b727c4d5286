"""What the endpoints work with, built once for each application; over 300 lines, since each part is named here once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Protocol

import numpy as np
from fastapi import Depends, Request

from service.access.service import AccessService, key_use_writer, noting
from service.adapters import repository as adapters
from service.adapters.activation import Activation, ActivationStatus
from service.adapters.artifacts import ArtifactStore
from service.adapters.bus import Change
from service.adapters.place import PlaceWatch, open_artifacts
from service.audit.service import Refusals
from service.catalog.encoding import CodecFollower
from service.catalog.follower import CatalogueFollower
from service.catalog.semantic_ids import Codec, load_codec
from service.catalog.service import ActiveCodec
from service.dashboard.comparison import Comparisons
from service.dashboard.details import Details
from service.dashboard.service import Sessions
from service.dashboard.side_work import SideWork
from service.dashboard.traffic import TrafficSampler
from service.dashboard.user_pages import Looks
from service.errors import ArtifactError
from service.generation.batching import Batcher
from service.generation.engine import GenerationRequest, ServedModel
from service.generation.select import SelectedEngine
from service.health import Check, PartState, Readiness, schema_check, store_check
from service.http import admission
from service.http.admission import House
from service.http.failure_limit import FailureLimiter
from service.http.intake import Intake, Room
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.long_lived import leave_out_of_collections
from service.recommend.fallback import PopularityFollower
from service.recommend.history import history_reader
from service.recommend.record import recommendation_writer
from service.recommend.service import Recommender
from service.recommend.similar import SimilarItems
from service.replicas.service import Heartbeat
from service.settings import Settings
from service.shared import Shared, make_shared
from service.telemetry import BATCH_SIZE, RECOMMENDATIONS
from service.tracing import Traces, followed, open_traces
from service.trials.following import TrialFollower
from service.trials.shadow import ShadowRanker

THREADS = 40  # of the routes that are plain functions; anyio's own default
FULL_BATCHES = 2  # while one is searched, of the other replies are written and the next pasts read
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
    refusals: Refusals
    failures: FailureLimiter
    sessions: Sessions
    traffic: TrafficSampler
    """What the dashboard shows of this process's last minutes."""
    serving: Callable[[], ActivationStatus]
    """What this process serves."""
    readiness: Readiness
    recommender: Recommender
    similar: SimilarItems
    codec: Callable[[], ActiveCodec | None]
    """The tokenizer of the active base, None while there is none."""
    pointer_moved: Callable[[], None]
    """Called after this process moved the active pointer: the model follows at once instead of at the next poll."""
    trial: TrialFollower
    """The candidate that this process tries beside what it serves."""
    no_second: Callable[[], str | None]
    """Why this process cannot hold a candidate beside what it serves, None where it can."""
    catalogue: CatalogueFollower
    """This process's snapshot of the catalogue, to be refreshed after own writes."""
    traces: Traces
    shared: Shared
    """What is shared with other replicas, to be told of own writes after their commit."""
    intake: Intake
    """Where requests that write find room and a thread."""
    questions: Room
    """Where the bodies of requests for recommendations find room while they come, whatever the store does."""
    houses: Mapping[str, House]
    """How many requests of each kind may be inside."""
    details: Details
    """What the dashboard's detail pages work with."""
    background: tuple[Background, ...] = field(default=())
    """Started in this order after the store was checked, stopped together."""


def build_services(settings: Settings, database: Database, clock: Clock) -> Services:
    """The services over one store. Connects to nothing yet."""
    artifacts = open_artifacts(settings)
    traces = open_traces(settings, "service")
    prompt = database.within(settings.database_answer_timeout.total_seconds())  # for what a request waits for
    catalogue = CatalogueFollower(database, settings.poll_interval)
    # First, for the parts below are given its caches; what it calls in its turn is called once all are there.
    shared = make_shared(
        settings,
        {
            Change.POINTER: lambda: pointer_moved(),
            Change.CATALOGUE: catalogue.notify,
            Change.TRIAL: lambda: trial.notify(),
        },
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
        leave_out_of_collections()

    activation = Activation(database, clock, artifacts, engine, settings.poll_interval, warm=warm)
    trial = TrialFollower(database, clock, activation.load_beside, settings.poll_interval, no_second=engine.no_second)

    def pointer_moved() -> None:
        activation.notify()
        trial.notify()  # a promoted candidate is no longer on trial

    batcher = Batcher(
        activation.lease_model,
        settings.batch_max_requests,
        QUEUED_BATCHES * settings.batch_max_requests,
        on_batch=BATCH_SIZE.observe,
        least_beams=settings.beams,
        on_ask=traces.follow("generate"),
        lease_candidate=trial.lease_candidate,
        on_candidate_failure=trial.failed,
    )
    shadow = ShadowRanker(batcher, database, clock, popularity.by_row)
    histories = history_reader(prompt, settings, shared.pasts if settings.history_cache else None)
    records = recommendation_writer(prompt)

    def trained_through(base_id: str, version: str | None) -> datetime | None:
        status = activation.status()
        if (status.base_id, status.adapter_version) == (base_id, version):
            return status.trained_through
        live = trial.live()
        return live.trained_through if live is not None and live.adapter_version == version else None

    recommender = Recommender(
        settings=settings,
        clock=clock,
        index=lambda: catalogue.index,
        popularity=popularity.by_row,
        batcher=batcher,
        read_past=followed(traces, "history.read", histories.ask),
        record=followed(traces, "recommendation.record", records.ask),
        active_base=lambda: activation.status().base_id,
        trained_through=trained_through,
        on_reply=lambda strategy, reason: RECOMMENDATIONS.labels(strategy, reason or "").inc(),
        answers=shared.answers,
        popularity_basis=popularity.basis,
        interaction=popularity.interaction,
        trial=trial.live,
        shadow=shadow.offer,
    )
    similar = SimilarItems(
        settings,
        index=lambda: catalogue.index,
        popularity=popularity.by_row,
        generate=recommender.generate,
        model_info=recommender.model_info,
        active_base=lambda: activation.status().base_id,
    )
    details = _details(database, settings, clock, catalogue, popularity, batcher, activation)
    checks: dict[str, Check] = {
        "store": store_check(prompt),
        "schema": schema_check(prompt),
        "engine": _engine_check(activation),
    }
    traffic = TrafficSampler()
    heartbeat = Heartbeat(database, clock, settings.heartbeat_interval, activation.status, trial.status)
    background: list[Background] = [traces, *shared.background, histories, records, batcher]
    background += [catalogue, popularity, codec, details.work, traffic, activation, trial, shadow, heartbeat]
    if shared.link is not None:
        checks["redis"] = shared.health
    if artifacts.remote is not None:
        watch = PlaceWatch(artifacts)
        checks["artifacts"] = _place_check(watch)
        background.append(watch)
    uses = key_use_writer(prompt)
    background.append(uses)
    access = AccessService(prompt, clock, without_store=settings.keys_without_store, note_use=noting(uses))
    return Services(
        settings=settings,
        database=database,
        prompt=prompt,
        clock=clock,
        artifacts=artifacts,
        access=access,
        refusals=Refusals(prompt, clock),
        failures=FailureLimiter(settings.failure_limit, settings.failure_limit_burst),
        sessions=Sessions(prompt, clock, access),
        traffic=traffic,
        serving=activation.status,
        readiness=Readiness(checks),
        recommender=recommender,
        similar=similar,
        codec=codec.active,
        pointer_moved=pointer_moved,
        trial=trial,
        no_second=engine.no_second,
        catalogue=catalogue,
        traces=traces,
        shared=shared,
        intake=Intake(
            most_requests=settings.intake_max_requests,
            most_bytes=settings.intake_max_bytes,
            workers=settings.database_pool_size,  # the pool's overflow is left to those who read
            patience=settings.database_answer_timeout,
        ),
        questions=Room(max(settings.max_body_bytes, settings.intake_max_bytes // 2)),
        houses=_houses(settings),
        details=details,
        background=tuple(background),
    )


def _details(
    database: Database,
    settings: Settings,
    clock: Clock,
    catalogue: CatalogueFollower,
    popularity: PopularityFollower,
    batcher: Batcher,
    activation: Activation,
) -> Details:
    work = SideWork()
    comparisons = Comparisons(
        database=database,
        settings=settings,
        clock=clock,
        index=lambda: catalogue.index,
        popularity=popularity.by_row,
        batcher=batcher,
        beside=activation.beside,
        work=work,
    )
    return Details(work, comparisons, Looks(database, clock))


def _houses(settings: Settings) -> dict[str, House]:
    patience_s = settings.queue_patience.total_seconds()
    batch = settings.batch_max_requests
    kept_busy, most = FULL_BATCHES * batch, QUEUED_BATCHES * batch
    return {
        admission.RECOMMENDATIONS: House(admission.RECOMMENDATIONS, kept_busy, most, patience_s),
        admission.OTHERS: House(admission.OTHERS, THREADS, QUEUED_BATCHES * THREADS, patience_s),
    }


def _open_codec(database: Database, artifacts: ArtifactStore, base_id: str) -> Codec:
    with database.read() as connection:
        base = adapters.find_base(connection, base_id)
    if base is None:
        raise ArtifactError(f"base {base_id} is active but not registered; restore the database or build a base")
    opened = artifacts.open_base(base_id, base.digest)  # named: its folder is there for as long as it lives
    return load_codec(opened.path / "codec")


def _engine_check(activation: Activation) -> Check:
    """Ready once a model has answered a search: the active one, or an earlier one, which it says.

    While a base is active and none of its models could be loaded, popularity is answered, and a balancer sends nothing
    here as long as another replica is ready.
    """

    def check() -> PartState:
        status = activation.status()
        state = "popular" if status.base_id is None else "base" if status.adapter_version is None else "personalised"
        if not status.settled:
            return PartState(False, "loading", "the active model is being loaded")
        if status.base_id is None and status.degraded:
            return PartState(False, f"{state}, degraded", status.degraded, answers=True)
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

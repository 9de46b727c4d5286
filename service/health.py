"""Live, ready, startup and metrics: no key, no worker thread of the API, an answer within about a second."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from service.errors import AdaptideError, ConfigurationError, StoreUnavailable
from service.kit import migrate
from service.kit.db import Database
from service.telemetry import REGISTRY

CHECK_TIMEOUT_S = 1.0  # a part that has not answered by then counts as not ready
RESULT_SECONDS = 0.5  # probes of several load balancers share one check
STORE_PARTS = frozenset({"store", "schema"})  # without them recommendations go on, from memory

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PartState:
    """How one part is: `state` is one word (ok, unreachable, popular, personalised, ...), `detail` what to do.

    answers: it is not ready, and recommendations are answered all the same, less well than elsewhere.
    """

    ready: bool
    state: str
    detail: str | None = None
    answers: bool = False


Check = Callable[[], PartState]
"""Asks a part how it is; may block, may raise AdaptideError (then the part is not ready)."""


class PartReport(BaseModel):
    ready: bool
    state: str
    detail: str | None


class HealthReport(BaseModel):
    status: str
    parts: dict[str, PartReport] = {}


def store_check(database: Database) -> Check:
    """Whether the database answers."""

    def check() -> PartState:
        try:
            with database.read() as connection:
                connection.exec_driver_sql("SELECT 1")
        except StoreUnavailable:
            return PartState(False, "unreachable", "the database does not answer")
        return PartState(True, "ok")

    return check


def schema_check(database: Database) -> Check:
    """Whether the schema is the one that this code was written for."""

    def check() -> PartState:
        try:
            migrate.require_head(database)
        except ConfigurationError as error:
            return PartState(False, "wrong_version", error.detail)
        except StoreUnavailable:
            return PartState(False, "unknown", "the database does not answer")
        return PartState(True, "ok")

    return check


class Readiness:
    """The parts' states, asked for at most every half second, each at most once at a time, on threads of its own."""

    def __init__(self, checks: Mapping[str, Check], timeout_s: float = CHECK_TIMEOUT_S) -> None:
        self._checks = dict(checks)
        self._timeout_s = timeout_s
        self._answers: dict[str, tuple[float, PartState]] = {}
        self._running: set[str] = set()
        self._lock = threading.Lock()
        self._started = False
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the process is about to stop."""
        return self._draining

    def drain(self) -> None:
        """Not ready from now on, whatever the parts say."""
        self._draining = True

    def add(self, name: str, check: Check) -> None:
        """Let one more part have its say."""
        self._checks = self._checks | {name: check}

    async def parts(self, *, without: frozenset[str] = frozenset()) -> dict[str, PartState]:
        """Every part's state, within about the timeout; those `without` are not asked."""
        names = [name for name in self._checks if name not in without]
        limiter = CapacityLimiter(len(names) or 1)
        with anyio.move_on_after(self._timeout_s):
            async with anyio.create_task_group() as group:
                for name in names:
                    if self._due(name):
                        group.start_soon(self._ask, name, limiter)
            while not self._running.intersection(names) <= self._answers.keys():  # noqa: ASYNC110  # its answer comes from a plain thread
                await anyio.sleep(0.01)  # another probe asked first; its answer is ours too
        now = time.monotonic()
        late = PartState(False, "no_answer", f"no answer within {self._timeout_s:g} s")
        states = {}
        for name in names:
            at, state = self._answers.get(name, (0.0, late))
            states[name] = state if now - at <= self._timeout_s + RESULT_SECONDS else late
        self._started = self._started or (not without and all(part.ready or part.answers for part in states.values()))
        return states

    async def has_started(self) -> bool:
        """Whether every part was ready at least once, or answers without."""
        if not self._started:
            await self.parts()
        return self._started

    def _due(self, name: str) -> bool:
        with self._lock:
            asked_at = self._answers[name][0] if name in self._answers else float("-inf")
            if name in self._running or time.monotonic() - asked_at < RESULT_SECONDS:
                return False
            self._running.add(name)
            return True

    async def _ask(self, name: str, limiter: CapacityLimiter) -> None:
        began = threading.Event()
        try:
            await to_thread.run_sync(self._answer, name, began, abandon_on_cancel=True, limiter=limiter)
        finally:
            if not began.is_set():
                self._running.discard(name)

    def _answer(self, name: str, began: threading.Event) -> None:
        began.set()
        try:
            state = self._checks[name]()
        except AdaptideError as error:
            state = PartState(False, error.slug, error.detail)
        except Exception as error:  # one broken check must not take the probe down
            log.error("health_check_crashed", part=name, exc_info=error)
            state = PartState(False, "crashed", "see the server's log")
        with self._lock:
            self._answers[name] = (time.monotonic(), state)
            self._running.discard(name)


router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> HealthReport:
    """The process runs. Restart it when this fails."""
    return HealthReport(status="live")


@router.get("/health/ready", responses={503: {"model": HealthReport}})
async def ready(request: Request, response: Response) -> HealthReport:
    """Whether requests should be sent here, and how each part is."""
    readiness: Readiness = request.app.state.services.readiness
    parts = await readiness.parts()
    return _report(readiness, parts, response, good=all(part.ready for part in parts.values()))


@router.get("/health/serving", responses={503: {"model": HealthReport}})
async def serving(request: Request, response: Response) -> HealthReport:
    """Whether recommendations are answered here, if need be without the store: where to send when nobody is ready."""
    readiness: Readiness = request.app.state.services.readiness
    parts = await readiness.parts(without=STORE_PARTS)
    return _report(readiness, parts, response, good=all(part.ready or part.answers for part in parts.values()))


def _report(readiness: Readiness, parts: Mapping[str, PartState], response: Response, *, good: bool) -> HealthReport:
    good = good and not readiness.draining
    if not good:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    reports = {name: PartReport(ready=p.ready, state=p.state, detail=p.detail) for name, p in parts.items()}
    status = "draining" if readiness.draining else "ready" if good else "not_ready"
    return HealthReport(status=status, parts=reports)


@router.get("/health/startup", responses={503: {"model": HealthReport}})
async def startup(request: Request, response: Response) -> HealthReport:
    """Whether the process has been ready once, or has found out that it can answer with popularity alone."""
    if await request.app.state.services.readiness.has_started():
        return HealthReport(status="started")
    response.status_code = 503
    response.headers["Retry-After"] = "1"
    return HealthReport(status="starting")


@router.get("/metrics", response_class=Response)
async def metrics() -> Response:
    """Prometheus text format."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

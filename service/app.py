"""The application: lifespan, middleware in order, routers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter, create_task_group, to_thread
from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

import service.adapters.endpoints
import service.audit.endpoints
import service.catalog.endpoints
import service.dashboard.detail_endpoints
import service.dashboard.endpoints
import service.events.endpoints
import service.health
import service.quality.endpoints
import service.recommend.endpoints
import service.replicas.endpoints
import service.trials.endpoints
import service.users.endpoints
import service.windows.endpoints
from service.http import problems
from service.http.admission import AdmissionMiddleware
from service.http.body_limit import BodyLimitMiddleware
from service.http.docs import add_docs
from service.http.draining import DrainingMiddleware
from service.http.failure_limit import FailureLimitMiddleware
from service.http.openapi import document
from service.http.queries import each_once
from service.http.rate_limit import RateLimitMiddleware
from service.http.request_context import RequestContextMiddleware
from service.http.security_headers import SecurityHeadersMiddleware
from service.http.tracing import TracingMiddleware
from service.kit.clock import Clock, utc_now
from service.settings import Settings
from service.store import open_store, require_usable
from service.tracing import OpenTelemetryTraces
from service.wiring import Background, Services, build_services

ROUTERS = (
    service.health.router,
    service.recommend.endpoints.router,
    service.recommend.endpoints.admin,
    service.events.endpoints.router,
    service.users.endpoints.exports,
    service.users.endpoints.router,
    service.catalog.endpoints.router,
    service.adapters.endpoints.router,
    service.replicas.endpoints.router,
    service.trials.endpoints.router,
    service.windows.endpoints.router,
    service.quality.endpoints.router,
    service.audit.endpoints.router,
    service.dashboard.endpoints.router,
    service.dashboard.detail_endpoints.router,
)
CORS: dict[str, Any] = {
    "allow_methods": ("GET", "POST", "PUT", "DELETE"),
    "allow_headers": ("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "X-Request-ID"),
    "expose_headers": ("ETag", "Retry-After", "X-Request-ID"),
    "max_age": 600,
}
"""What a page of an allowed origin may do: all that the API takes, and never with cookies."""


NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own would record paths and queries, which hold user ids, wherever the environment turns it on."""


def create_app(settings: Settings, *, clock: Clock = utc_now) -> FastAPI:
    """The API over the store that `settings` name. Connects when it starts.

    Its start raises ConfigurationError when the schema is not this version's, StoreUnavailable without a store.
    """
    database = open_store(settings, serves=True)
    services = build_services(settings, database, clock)
    app = FastAPI(
        title="Adaptide",
        version=version("adaptide"),
        summary="Recommends the next item with a language model that keeps learning.",
        lifespan=_lifespan,
        dependencies=[Depends(each_once)],
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.state.services = services
    problems.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(RateLimitMiddleware, limiter=services.shared.limiter)
    app.add_middleware(FailureLimitMiddleware, limiter=services.failures, was_good=services.access.was_good)
    app.add_middleware(AdmissionMiddleware, houses=services.houses)
    app.add_middleware(problems.ProblemsMiddleware)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=sorted(settings.cors_origins), **CORS)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestContextMiddleware)
    if isinstance(services.traces, OpenTelemetryTraces):
        app.add_middleware(TracingMiddleware, traces=services.traces)
    app.add_middleware(DrainingMiddleware, draining=lambda: services.readiness.draining)
    for router in ROUTERS:
        app.include_router(router)
    if settings.serves_docs:
        add_docs(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    async with AsyncExitStack() as stack:
        stack.callback(services.database.close)
        await run_in_threadpool(require_usable, services.database)
        started: list[Background] = []
        stack.push_async_callback(_stop, started)
        for background in services.background:
            background.start()
            started.append(background)
        yield


async def _stop(started: Sequence[Background]) -> None:
    """All at once, each of which waits for its thread: where the store hangs they would add up to minutes."""
    limiter = CapacityLimiter(len(started) or 1)  # the threads of requests may hang as well
    async with create_task_group() as group:
        for background in reversed(started):
            group.start_soon(partial(to_thread.run_sync, background.stop, limiter=limiter))


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = document(app)
    return app.openapi_schema

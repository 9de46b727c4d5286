"""The application: lifespan, middleware in order, routers."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

import service.adapters.endpoints
import service.audit.endpoints
import service.catalog.endpoints
import service.events.endpoints
import service.health
import service.recommend.endpoints
import service.replicas.endpoints
import service.windows.endpoints
from service.events.schemas import EventBatch
from service.http import problems
from service.http.body_limit import BodyLimitMiddleware
from service.http.draining import DrainingMiddleware
from service.http.rate_limit import RateLimitMiddleware
from service.http.request_context import RequestContextMiddleware
from service.http.security_headers import SecurityHeadersMiddleware
from service.kit.clock import Clock, utc_now
from service.settings import Settings
from service.store import open_store, require_usable
from service.wiring import Services, build_services

ROUTERS = (
    service.health.router,
    service.recommend.endpoints.router,
    service.events.endpoints.router,
    service.catalog.endpoints.router,
    service.adapters.endpoints.router,
    service.replicas.endpoints.router,
    service.windows.endpoints.router,
    service.audit.endpoints.router,
)


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
        redirect_slashes=False,
    )
    app.state.services = services
    problems.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(RateLimitMiddleware, limiter=services.shared.limiter)
    app.add_middleware(problems.ProblemsMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestContextMiddleware)
    app.add_middleware(DrainingMiddleware, draining=lambda: services.readiness.draining)
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    async with AsyncExitStack() as stack:
        stack.callback(services.database.close)
        await run_in_threadpool(require_usable, services.database)
        for background in services.background:
            background.start()
            stack.push_async_callback(run_in_threadpool, background.stop)
        yield


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        # The events endpoint parses its body itself, event by event, so the framework does not know its schema.
        batch = EventBatch.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= batch.pop("$defs") | {"EventBatch": batch}
        app.openapi_schema = schema
    return app.openapi_schema

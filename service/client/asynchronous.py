"""The API, for asyncio; a method a route, so long. `python -m service.http.client_source` makes the other."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from service.client.encoding import decode, encode
from service.client.errors import ClientError, ConnectionFailed, UnexpectedReply
from service.client.models import (
    ActivationView,
    AdapterDetailView,
    AuditPage,
    Erasure,
    Event,
    EventPage,
    HealthReport,
    IngestReport,
    Item,
    ItemView,
    PromoteRequest,
    PutReport,
    QualityView,
    RecommendationReply,
    RecommendationRequest,
    RegistryView,
    ReplicasView,
    RollbackRequest,
    SimilarReply,
    StoredRecommendation,
    TrialChangeView,
    TrialReportView,
    TrialRequest,
    TrialsView,
    WindowsView,
    WindowView,
)
from service.client.replies import retry_after, to_error
from service.client.retries import NEVER, RETRIED_STATUSES, Retries

T = TypeVar("T")


class AsyncClient:
    """Calls of one server. Use it as a context manager, or aclose() it; it keeps connections and may be shared.

    Every call raises ApiError (by slug, service.client.errors), ConnectionFailed or UnexpectedReply. A call that may be
    repeated is, as `retries` says: all but close_window.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 10.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """timeout: seconds without an answer, of one attempt. transport: httpx's, such as one with a proxy."""
        headers = {"Accept": "application/json", "User-Agent": "adaptide-client"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout, transport=transport)
        self._retries = retries or Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def recommend(self, wanted: RecommendationRequest) -> RecommendationReply:
        """Items that a user, or a history, is likely to take next. An unknown user gets popular items."""
        return await self._call(RecommendationReply, "POST", "/v1/recommendations", body=encode(wanted))

    async def recommend_for(self, user_id: str, *, limit: int = 10) -> RecommendationReply:
        """The short form: by the stored history, seen items left out."""
        path = "/v1/users/{user_id}/recommendations"
        return await self._call(RecommendationReply, "GET", path, {"user_id": user_id}, query={"limit": limit})

    async def similar_items(
        self, item_id: str, *, limit: int = 10, category: str | None = None, brand: str | None = None
    ) -> SimilarReply:
        """More like this item. Raises NotFound for an unknown or deleted one."""
        path, query = "/v1/items/{item_id}/similar", {"limit": limit, "category": category, "brand": brand}
        return await self._call(SimilarReply, "GET", path, {"item_id": item_id}, query=query)

    async def send_events(self, events: Sequence[Event], *, validate_only: bool = False) -> IngestReport:
        """Store up to 500 events, durable when this returns. Sending the same event again is safe and counted once.

        A wrong event is in `rejected` with its index, and the others are stored.
        """
        query = {"validate_only": "true"} if validate_only else {}
        return await self._call(IngestReport, "POST", "/v1/events", query=query, body={"events": encode(list(events))})

    async def read_events(self, user_id: str, *, limit: int = 50, before_seq: int | None = None) -> EventPage:
        """The user's events, newest first."""
        query = {"limit": limit, "before_seq": before_seq}
        return await self._call(EventPage, "GET", "/v1/users/{user_id}/events", {"user_id": user_id}, query=query)

    async def put_items(self, items: Sequence[Item]) -> PutReport:
        """Create or replace up to 500 items; a new one can be recommended within a second."""
        return await self._call(PutReport, "PUT", "/v1/items", body={"items": encode(list(items))})

    async def get_item(self, item_id: str) -> ItemView:
        """Raises NotFound for an unknown or deleted item."""
        return await self._call(ItemView, "GET", "/v1/items/{item_id}", {"item_id": item_id})

    async def delete_item(self, item_id: str) -> None:
        """Hide the item from recommendations at once. Raises NotFound for an unknown or deleted item.

        When an attempt was answered to nobody, the next one finds the item deleted already, which is what was wanted.
        """
        await self._send("DELETE", "/v1/items/{item_id}", {"item_id": item_id}, done=404)

    async def export_user(self, user_id: str) -> AsyncIterator[dict[str, Any]]:
        """Everything that is held on the user, one mapping after the other by its `kind`; the last is of kind `end`.

        Raises UnexpectedReply when it was cut off before that. It is not repeated.
        """
        url = _filled("/v1/users/{user_id}/export", {"user_id": user_id})
        kind = None
        try:
            async with self._http.stream("GET", url) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    raise to_error(reply)
                async for line in reply.aiter_lines():
                    if line:
                        found = decode(dict[str, Any], _json(reply, line))
                        kind = found.get("kind")
                        yield found
        except httpx.RequestError as error:
            raise _unanswered(error) from error
        if kind != "end":
            raise UnexpectedReply("the export was cut off; ask for it again")

    async def erase_user(self, user_id: str) -> Erasure:
        """Erase everything that is held on the user. Cannot be undone."""
        return await self._call(Erasure, "DELETE", "/v1/users/{user_id}", {"user_id": user_id})

    async def list_adapters(self, *, limit: int = 100, before: str | None = None) -> RegistryView:
        """Adapters, newest first, and the pointer to the active one. Scope admin, like all that follow."""
        return await self._call(RegistryView, "GET", "/v1/admin/adapters", query={"limit": limit, "before": before})

    async def get_adapter(self, version: str) -> AdapterDetailView:
        return await self._call(AdapterDetailView, "GET", "/v1/admin/adapters/{version}", {"version": version})

    async def promote(
        self,
        version: str,
        *,
        reason: str | None = None,
        revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> ActivationView:
        """Make an adapter the active one.

        idempotency_key: made up unless given; a repeated attempt is answered with what the first one did. revision: of
        the pointer on which this was decided; raises PreconditionFailed when it has moved.
        """
        headers = _moving(revision, idempotency_key)
        body, path = encode(PromoteRequest(reason=reason)), "/v1/admin/adapters/{version}/promote"
        return await self._call(ActivationView, "POST", path, {"version": version}, body=body, headers=headers)

    async def rollback(
        self,
        to_version: str | None = None,
        *,
        reason: str | None = None,
        revision: int | None = None,
        idempotency_key: str | None = None,
    ) -> ActivationView:
        """Go back to what was active before, to `to_version`, or to "base". Otherwise as promote."""
        headers = _moving(revision, idempotency_key)
        body = encode(RollbackRequest(to_version=to_version, reason=reason))
        return await self._call(ActivationView, "POST", "/v1/admin/adapters/rollback", body=body, headers=headers)

    async def get_recommendation(self, recommendation_id: str) -> StoredRecommendation:
        """What is kept of a past recommendation. Raises NotFound when it is not kept any more."""
        path = "/v1/admin/recommendations/{recommendation_id}"
        return await self._call(StoredRecommendation, "GET", path, {"recommendation_id": recommendation_id})

    async def read_quality(self, *, since: datetime | None = None, until: datetime | None = None) -> QualityView:
        """What came of recommendations, by adapter version."""
        query = {"since": encode(since), "until": encode(until)}
        return await self._call(QualityView, "GET", "/v1/admin/quality", query=query)

    async def get_trial(self) -> TrialsView:
        """The trial that runs, and those before it."""
        return await self._call(TrialsView, "GET", "/v1/admin/trial")

    async def start_trial(
        self, wanted: TrialRequest, *, revision: int | None = None, idempotency_key: str | None = None
    ) -> TrialChangeView:
        """Try a candidate beside what serves. revision: of the trials; otherwise as promote."""
        headers = _moving(revision, idempotency_key)
        return await self._call(TrialChangeView, "PUT", "/v1/admin/trial", body=encode(wanted), headers=headers)

    async def end_trial(
        self, *, reason: str | None = None, revision: int | None = None, idempotency_key: str | None = None
    ) -> TrialChangeView:
        """End the trial that runs; the candidate stays as it is."""
        headers, query = _moving(revision, idempotency_key), {"reason": reason}
        return await self._call(TrialChangeView, "DELETE", "/v1/admin/trial", query=query, headers=headers)

    async def report_trial(
        self, *, adapter_version: str | None = None, horizon_hours: float | None = None
    ) -> TrialReportView:
        """How a candidate compares with what served beside it; of the latest trial unless a version is given."""
        query = {"adapter_version": adapter_version, "horizon_hours": horizon_hours}
        return await self._call(TrialReportView, "GET", "/v1/admin/trial/report", query=query)

    async def list_replicas(self) -> ReplicasView:
        """Every process that serves."""
        return await self._call(ReplicasView, "GET", "/v1/admin/replicas")

    async def list_windows(self, *, limit: int = 50, before: int | None = None) -> WindowsView:
        """Windows, newest first, and the open one."""
        return await self._call(WindowsView, "GET", "/v1/admin/windows", query={"limit": limit, "before": before})

    async def close_window(self) -> WindowView:
        """Seal the open window now. Raises Conflict when no event has arrived. Never repeated: it might seal two."""
        return await self._call(WindowView, "POST", "/v1/admin/windows/close", retries=NEVER)

    async def read_audit(self, *, limit: int = 50, before: str | None = None) -> AuditPage:
        """The audit log, newest first."""
        return await self._call(AuditPage, "GET", "/v1/admin/audit", query={"limit": limit, "before": before})

    async def live(self) -> HealthReport:
        """Whether the process runs. A health call is made once: its failure is the answer."""
        return await self._health("/health/live")

    async def ready(self) -> HealthReport:
        """Whether the process takes requests; `parts` says what is not ready."""
        return await self._health("/health/ready")

    async def serving(self) -> HealthReport:
        """Whether it answers with the model that it should."""
        return await self._health("/health/serving")

    async def startup(self) -> HealthReport:
        """Whether it has started."""
        return await self._health("/health/startup")

    async def metrics(self) -> str:
        """Prometheus' text."""
        return (await self._send("GET", "/metrics", retries=NEVER)).text

    async def _health(self, path: str) -> HealthReport:
        reply = await self._send("GET", path, retries=NEVER, done=503)
        return decode(HealthReport, _json(reply))

    async def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        place: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retries | None = None,
    ) -> T:
        reply = await self._send(method, path, place, query=query, body=body, headers=headers, retries=retries)
        return decode(kind, _json(reply))

    async def _send(
        self,
        method: str,
        path: str,
        place: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retries | None = None,
        done: int | None = None,
    ) -> httpx.Response:
        """The reply, once one of 2xx came. done: a status that is as good, on a first attempt only with 503."""
        policy = retries or self._retries
        url = _filled(path, place or {})
        params = {name: value for name, value in (query or {}).items() if value is not None}
        attempt = 1
        while True:
            try:
                reply = await self._http.request(method, url, params=params, json=body, headers=headers)
            except httpx.RequestError as error:
                pause = policy.pause(attempt, None)
                if pause is None:
                    raise _unanswered(error) from error
            else:
                if reply.is_success or (reply.status_code == done and (attempt > 1 or done == 503)):
                    return reply
                repeated = reply.status_code in RETRIED_STATUSES
                pause = policy.pause(attempt, retry_after(reply)) if repeated else None
                if pause is None:
                    raise to_error(reply)
            await asyncio.sleep(pause)
            attempt += 1


def _filled(path: str, place: Mapping[str, str]) -> str:
    """The address of a thing: an id may hold any character, slashes too, and none of them leads elsewhere."""
    for name, value in place.items():
        if value in (".", ".."):  # clients and proxies take them for folders
            raise ValueError(f"{name} {value!r} cannot be part of an address")
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    return path


def _moving(revision: int | None, idempotency_key: str | None) -> dict[str, str]:
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return headers if revision is None else {**headers, "If-Match": f'"{revision}"'}


def _unanswered(error: httpx.RequestError) -> ClientError:
    kind = ConnectionFailed if isinstance(error, httpx.TransportError) else UnexpectedReply
    return kind(f"{type(error).__name__}: {error}")


def _json(reply: httpx.Response, line: str | None = None) -> Any:
    """Of the reply, or of one line of it."""
    try:
        return reply.json() if line is None else json.loads(line)
    except ValueError as error:
        text = reply.text if line is None else line
        raise UnexpectedReply(f"{reply.url} did not answer with JSON ({reply.status_code}): {text[:100]!r}") from error

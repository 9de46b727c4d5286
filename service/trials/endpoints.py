"""GET, PUT, DELETE /v1/admin/trial, GET /v1/admin/trial/report."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.access.endpoints import Admin
from service.adapters.bus import Change
from service.adapters.endpoints import IdempotencyKey, IfMatch, move_request
from service.adapters.schemas import Reason
from service.audit.refusals import Audited
from service.errors import Conflict
from service.http.bodies import order, takes
from service.trials import service
from service.trials.judging import report
from service.trials.schemas import (
    HereView,
    TrialChangeView,
    TrialMoveView,
    TrialReportView,
    TrialRequest,
    TrialsView,
    TrialView,
    Version,
)
from service.trials.service import Wanted
from service.wiring import Services, ServicesDep

router = APIRouter(tags=["admin"], route_class=Audited)


@router.get("/v1/admin/trial")
def read_trial(services: ServicesDep, principal: Admin, response: Response) -> TrialsView:
    """The candidate that is tried beside the active adapter, if any, and what became of earlier ones.

    ETag is the trial's revision, which is not the pointer's.
    """
    found = service.read(services.database)
    response.headers["ETag"] = f'"{found.revision}"'
    return TrialsView(
        revision=found.revision,
        trial=None if found.trial is None else TrialView.model_validate(found.trial),
        here=HereView.model_validate(services.trial.status()),
        history=[TrialMoveView.model_validate(row) for row in found.history],
    )


@router.put("/v1/admin/trial", openapi_extra=takes(TrialRequest))
def run_trial(
    services: ServicesDep,
    principal: Admin,
    if_match: IfMatch,
    body: Annotated[TrialRequest, order(TrialRequest)],
    idempotency_key: IdempotencyKey = None,
) -> TrialChangeView:
    """Try a candidate beside the active adapter: in the shadow, or on a share of the users.

    Sent again with the same candidate it changes kind, share or end; a larger share holds all users of the smaller one.
    """
    if (reason := services.no_second()) is not None:
        raise Conflict(reason)
    request = move_request(principal, body.reason, if_match, idempotency_key)
    wanted = Wanted(body.adapter_version, body.kind, body.share, body.ends_at)
    done = service.run(services.database, services.clock, services.artifacts, wanted, request)
    _tell(services)
    return TrialChangeView.of(done)


@router.delete("/v1/admin/trial")
def end_trial(
    services: ServicesDep,
    principal: Admin,
    if_match: IfMatch,
    idempotency_key: IdempotencyKey = None,
    reason: Annotated[Reason | None, Query()] = None,
) -> TrialChangeView:
    """End the trial: the active adapter answers everybody again."""
    done = service.end(services.database, services.clock, move_request(principal, reason, if_match, idempotency_key))
    _tell(services)
    return TrialChangeView.of(done)


@router.get("/v1/admin/trial/report")
def report_trial(
    services: ServicesDep,
    principal: Admin,
    adapter_version: Annotated[Version | None, Query()] = None,
    horizon_hours: Annotated[float, Query(gt=0, le=720)] = 24,
) -> TrialReportView:
    """How a candidate did in its latest trial: its lists beside what was shown, and what users took afterwards.

    Without adapter_version: the candidate of the latest trial. What a user took counts within the horizon.
    """
    horizon = timedelta(hours=horizon_hours)
    ignored = services.settings.ignored_event_types
    return TrialReportView.of(report(services.database, horizon, ignored, adapter_version))


def _tell(services: Services) -> None:
    services.trial.notify()
    services.shared.announce(Change.TRIAL)

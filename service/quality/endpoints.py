"""GET /v1/admin/quality."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from service.access.endpoints import Admin
from service.kit.fields import Moment
from service.quality import monitor
from service.quality.schemas import QualityView
from service.wiring import ServicesDep

router = APIRouter(tags=["admin"])

FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9998, 1, 1, tzinfo=UTC)
Bound = Annotated[Moment | None, Query(examples=["2026-03-01T00:00:00Z"])]


@router.get("/v1/admin/quality")
def read_quality(services: ServicesDep, principal: Admin, since: Bound = None, until: Bound = None) -> QualityView:
    """What live recommendations have come to, by the version that made them, and how the serving one compares.

    since, until: of recommendations made then; buckets of time that begin in between count whole. Nothing lies
    between a later `since` and an earlier `until`.
    """
    database, settings = services.database, services.settings
    quality, look = monitor.read_with_look(database, settings, since=within(since), until=within(until))
    return QualityView.of(quality, look, settings.rollback_automatic)


def within(moment: datetime | None) -> datetime | None:
    """In UTC; before or after any recommendation there can be: the first or last moment that its id can say."""
    if moment is None:
        return None
    try:
        return min(max(moment.astimezone(UTC), FIRST), LAST)
    except OverflowError:
        return FIRST if moment.year < LAST.year else LAST

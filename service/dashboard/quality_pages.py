"""GET /dashboard/quality."""

from datetime import timedelta
from enum import IntEnum
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from service.dashboard import quality_words
from service.dashboard.pages import Page, page
from service.dashboard.visitors import SomeVisitor
from service.quality import monitor
from service.quality.schemas import QualityView
from service.windows import service as windows
from service.windows.schemas import WindowView
from service.wiring import ServicesDep

HERE = "/dashboard/quality"
WINDOWS = 50

router = APIRouter(prefix=HERE, route_class=Page)


class Days(IntEnum):
    """How far back the page looks."""

    DAY = 1
    WEEK = 7
    MONTH = 30
    ALL = 400


@router.get("")
def show(services: ServicesDep, visitor: SomeVisitor, days: Annotated[Days, Query()] = Days.WEEK) -> Response:
    """What live recommendations came to by version, the serving one beside the one before, and drift by window."""
    database, settings = services.database, services.settings  # the figures of a year take their time
    quality, look = monitor.read_with_look(database, settings, since=services.clock() - timedelta(days=days))
    view = QualityView.of(quality, look, settings.rollback_automatic)
    with database.read() as connection:
        closed, _ = windows.read_closed(connection, limit=WINDOWS)
    charts = [
        *quality_words.course_charts(quality.buckets, view),
        quality_words.drift_chart([WindowView.of(window, settings) for window in closed]),
    ]
    return page(
        "quality.html",
        here=HERE,
        visitor=visitor,
        quality=view,
        days=int(days),
        spans=[(int(one), label) for one, label in zip(Days, ("a day", "7 days", "30 days", "all"), strict=True)],
        verdict=quality_words.verdict(view.watch),
        charts=[chart for chart in charts if chart is not None],
    )

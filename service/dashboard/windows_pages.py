"""GET /dashboard/windows and /dashboard/windows/{window_id}."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from service.dashboard import window_words
from service.dashboard.pages import Page, page
from service.dashboard.service import beside_windows
from service.dashboard.visitors import SomeVisitor
from service.windows import service as windows
from service.windows.repository import bound_pending
from service.windows.schemas import WindowView
from service.windows.states import WindowState
from service.wiring import Services, ServicesDep

HERE = "/dashboard/windows"
PER_PAGE = 25
LARGEST = 2**31 - 1

router = APIRouter(prefix=HERE, route_class=Page)

Before = Annotated[int | None, Query(ge=1, le=LARGEST)]
WindowId = Annotated[int, Path(ge=1, le=LARGEST)]


@router.get("")
def show_windows(services: ServicesDep, visitor: SomeVisitor, before: Before = None) -> Response:
    """Windows newest first, older ones by `before`, with charts of those on the page."""
    return page("windows.html", here=HERE, visitor=visitor, **_page(services, before))


@router.get("/part")
def show_part(services: ServicesDep, visitor: SomeVisitor, before: Before = None) -> Response:
    """The same without the frame."""
    return page("windows_part.html", **_page(services, before))


@router.get("/{window_id}")
def show_window(services: ServicesDep, visitor: SomeVisitor, window_id: WindowId) -> Response:
    """One window: its steps, what it held, how candidate, incumbent, base and popularity ranked on its users."""
    return page("window.html", here=HERE, visitor=visitor, **_window(services, window_id))


@router.get("/{window_id}/part")
def show_window_part(services: ServicesDep, visitor: SomeVisitor, window_id: WindowId) -> Response:
    """The same without the frame."""
    return page("window_part.html", **_window(services, window_id))


def _page(services: Services, before: int | None) -> dict[str, Any]:
    with services.prompt.read() as connection:
        closed, next_before = windows.read_closed(connection, limit=PER_PAGE, before=before)
        pending = bound_pending(connection)
        beside = beside_windows(connection, services.settings, closed)
    shown = [WindowView.of(window, services.settings) for window in closed]
    charts = [*window_words.ranking_charts(shown), window_words.learning_chart(shown)]
    return {
        "windows": shown,
        "beside": beside,
        "next_before": next_before,
        "before": before,
        "open": pending,
        "charts": [chart for chart in charts if chart is not None],
    }


def _window(services: Services, window_id: int) -> dict[str, Any]:
    window = windows.read_window(services.prompt, window_id)
    with services.prompt.read() as connection:
        beside = beside_windows(connection, services.settings, [window])
    found = WindowView.of(window, services.settings)
    under_way = found.state in (WindowState.SEALED, WindowState.TRAINING, WindowState.FAILED)
    return {
        "window": found,
        "beside": beside,
        "under_way": under_way,
        "statistics": window_words.plain_statistics(found.statistics),
        "chart_of_epochs": window_words.epochs_chart(found),
        "prequential": (found.statistics or {}).get("prequential") or {},
        "gain": (found.statistics or {}).get("gain_over_base"),
    }

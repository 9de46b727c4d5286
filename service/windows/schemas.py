"""Windows as they are sent."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.settings import Settings
from service.windows.repository import Window
from service.windows.service import WindowPage, next_attempt_of
from service.windows.states import SealedBecause, WindowState


class EvaluationView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    subject: str
    """candidate, incumbent, base or popularity."""
    adapter_version: str | None
    users: int
    hit_5: float
    hit_10: float
    ndcg_5: float
    ndcg_10: float
    comparison: dict[str, Any] | None
    """Candidate against incumbent: difference and interval."""


class WindowView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    window_id: int
    after_seq: int
    """Exclusive lower end of its range of the event sequence."""
    through_seq: int
    """Inclusive upper end."""
    events: int
    state: WindowState
    sealed_at: datetime
    sealed_because: SealedBecause
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None = None
    """From the start of the latest attempt to its end."""
    next_attempt_at: datetime | None = None
    """When a failed one may be tried again; null for one that failed for good."""
    method: str | None
    base_id: str | None
    incumbent_version: str | None
    candidate_version: str | None
    verdict: str | None
    reason: str | None
    steps: list[dict[str, Any]] | None
    """Duration and outcome of each step of the update."""
    statistics: dict[str, Any] | None
    evaluations: list[EvaluationView]

    @classmethod
    def of(cls, window: Window, settings: Settings) -> "WindowView":
        view = cls.model_validate(window)
        view.next_attempt_at = next_attempt_of(window, settings)
        if window.started_at is not None and window.finished_at is not None:
            view.seconds = (window.finished_at - window.started_at).total_seconds()
        return view


class OpenWindow(BaseModel):
    after_seq: int
    events: int
    """Counted up to ADAPTIDE_WINDOW_MAX_EVENTS."""
    since: datetime | None
    """Arrival of its first event."""


class WindowsView(BaseModel):
    windows: list[WindowView]
    """Newest first."""
    next_before: int | None
    """Send it as `before` for the next, older page; null on the last."""
    open: OpenWindow

    @classmethod
    def of(cls, page: WindowPage, settings: Settings) -> "WindowsView":
        pending = page.open
        opened = OpenWindow(after_seq=pending.after_seq, events=pending.events, since=pending.first_received_at)
        return cls(
            windows=[WindowView.of(w, settings) for w in page.windows], next_before=page.next_before, open=opened
        )

"""Sessions, forms, and what the first page shows."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.access.schemas import Principal
from service.adapters.activation import ActivationStatus
from service.adapters.repository import Adapter, Pointer
from service.adapters.schemas import Reason
from service.dashboard.traffic import Traffic
from service.dashboard.window_words import Beside
from service.replicas.schemas import ReplicaView
from service.trials.states import Trial
from service.windows.schemas import WindowView
from service.windows.states import Pending

LIFETIME = timedelta(hours=12)
IDLE = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Session:
    """A stored session; its secret is not kept."""

    key_id: str
    created_at: datetime
    seen_at: datetime

    def usable(self, now: datetime) -> bool:
        return now - self.created_at < LIFETIME and now - self.seen_at < IDLE


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whom a request with a session acts for. csrf: what every form of the session has to carry."""

    principal: Principal
    csrf: str


@dataclass(frozen=True, slots=True)
class Freshness:
    """What the model has learnt beside what is stored. learnt, stored: when the newest such event occurred.

    waiting: events at most that are stored and not learnt yet, in `windows` closed windows and the open one.
    """

    learnt: datetime | None
    stored: datetime | None
    received: datetime | None
    waiting: int
    windows: int

    @property
    def behind(self) -> timedelta | None:
        """How much older the newest event is that was learnt; None where there is nothing to compare."""
        if self.learnt is None or self.stored is None:
            return None
        return max(self.stored - self.learnt, timedelta(0))


@dataclass(frozen=True, slots=True)
class Now:
    """What serves at this moment, here and on the other replicas. open: its events are a bound, see bound_pending."""

    at: datetime
    serving: ActivationStatus
    pointer: Pointer
    freshness: Freshness
    open: Pending
    traffic: Traffic | None
    replicas: list[ReplicaView]
    trial: Trial | None

    @property
    def follows(self) -> bool:
        """Whether this replica has yet to go where the registry points."""
        pointer, serving = self.pointer, self.serving
        return (serving.base_id, serving.adapter_version) != (pointer.base_id, pointer.adapter_version)


@dataclass(frozen=True, slots=True)
class RegistryShown:
    """Newest adapters and windows under one pointer. back_to: what a rollback of it would go to, None when there is
    nothing; "base" is the base without an adapter."""

    pointer: Pointer
    adapters: list[Adapter]
    windows: list[WindowView]
    beside: Beside
    back_to: str | None
    trial: Trial | None


class LoginForm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class SessionForm(BaseModel):
    """Any form of a session."""

    model_config = ConfigDict(extra="forbid")

    csrf: Annotated[str, StringConstraints(max_length=100)] = ""


class MoveForm(SessionForm):
    """A promotion or a rollback: decided on under `revision`, with the version's name typed by hand."""

    version: Annotated[str, StringConstraints(pattern="^(base|a[0-9]{6,9}-[0-9a-f]{12})$")]
    revision: Annotated[int, Field(ge=0, lt=10**9)]
    confirmation: Annotated[str, StringConstraints(strip_whitespace=True, max_length=100)] = ""
    reason: Reason = ""

"""Adapters, the pointer and its moves as they are sent."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from service.adapters.repository import ActivationRow, Adapter
from service.adapters.states import Action, AdapterState


class AdapterView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    adapter_version: str
    base_id: str
    parent_version: str | None
    """What it was trained from; null: the bare base."""
    window_id: int | None
    state: AdapterState
    digest: str
    """SHA-256 of its manifest."""
    method: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, Any]
    trained_through: datetime | None
    """Newest event it has seen."""
    created_at: datetime


class ActivePointer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    revision: int
    """Send it as If-Match with a promotion or a rollback."""
    base_id: str | None
    adapter_version: str | None
    """Null: the base alone, or nothing yet."""


class RegistryView(BaseModel):
    active: ActivePointer
    adapters: list[AdapterView]
    """Newest first."""
    next_before: str | None
    """Send it as `before` for the next, older page; null on the last."""


class MoveView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    audit_id: str
    revision: int
    action: Action
    from_version: str | None
    to_version: str | None
    window_id: int | None
    actor: str
    reason: str | None
    created_at: datetime


class AdapterDetailView(AdapterView):
    active: bool
    revision: int
    """The pointer's, as of this reply."""
    history: list[MoveView]
    """The moves it took part in, newest first, 50 at most."""

    @classmethod
    def of(cls, adapter: Adapter, active: bool, revision: int, history: list[ActivationRow]) -> "AdapterDetailView":
        moves = [MoveView.model_validate(row) for row in history]
        known = AdapterView.model_validate(adapter).model_dump()
        return cls(**known, active=active, revision=revision, history=moves)


Reason = Annotated[str, StringConstraints(max_length=500, pattern="^[^\x00]*$")]


class PromoteRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Reason | None = None


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    to_version: Annotated[str, StringConstraints(strict=True, pattern="^(base|a[0-9]{6,9}-[0-9a-f]{12})$")] | None = (
        None
    )
    """A version, "base" for the base without an adapter, or null for what was active before."""
    reason: Reason | None = None


class ActivationView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    from_version: str | None
    to_version: str | None
    """Null: the base without an adapter."""
    revision: int
    audit_id: str

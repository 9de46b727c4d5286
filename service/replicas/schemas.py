"""Replicas as they are sent."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class ReplicaView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    replica_id: str
    host: str
    process: int
    """Its process id on that host."""
    started_at: datetime
    seen_at: datetime
    late: bool
    """It has missed some heartbeats: it hangs, cannot reach the store or was killed."""
    revision: int | None
    """The newest revision of the pointer that it has acted upon."""
    base_id: str | None
    """Null: it serves no model yet."""
    adapter_version: str | None
    """Null: the base alone, or nothing yet."""
    wanted_base_id: str | None
    """What it should serve and does not, or is loading."""
    wanted_version: str | None
    degraded: str | None
    """Why it serves something else than the pointer names."""
    trial_version: str | None = None
    """The candidate of a trial that it holds beside what it serves."""
    trial_trouble: str | None = None
    """Why it does not hold it; the active adapter then answers everybody there."""


class ReplicasView(BaseModel):
    replicas: list[ReplicaView]
    """In order of their start."""

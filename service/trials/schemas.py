"""Trials as they are asked for and sent."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.adapters.schemas import Reason
from service.kit.fields import Moment
from service.trials.judging import TrialReport
from service.trials.repository import TrialRow
from service.trials.states import Deed, EndReason, Kind

Version = Annotated[str, StringConstraints(strict=True, pattern="^a[0-9]{6,9}-[0-9a-f]{12}$")]


class TrialRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"adapter_version": "a000004-3f9c21d07be4", "kind": "canary", "share": 0.1}]},
    )

    adapter_version: Version
    kind: Kind
    """shadow: it ranks what was answered, and nobody sees it. canary: it answers a share of the users."""
    share: Annotated[float, Field(gt=0, le=1, strict=True)]
    """Of users, picked by a hash of their id; the same ones on every replica."""
    ends_at: Moment | None = None
    """When it ends by itself; null: when somebody ends it."""
    reason: Reason | None = None


class TrialView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    adapter_version: str
    base_id: str
    kind: Kind
    share: float
    salt: str
    """Of the hash that picks users; kept while the trial goes on."""
    started_at: datetime
    ends_at: datetime | None


class TrialMoveView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    revision: int
    deed: Deed
    adapter_version: str
    kind: Kind
    share: float
    ends_at: datetime | None
    because: EndReason | None
    """Why it ended; null for a start or a change."""
    actor: str
    reason: str | None
    audit_id: str
    created_at: datetime


class HereView(BaseModel):
    """What the replica that answered does of the trial; GET /v1/admin/replicas has all of them."""

    model_config = ConfigDict(from_attributes=True)

    loaded: str | None
    """The candidate that it holds in memory."""
    trouble: str | None
    """Why it does not; control then answers everybody here."""


class TrialsView(BaseModel):
    revision: int
    """Send it as If-Match with a change or an end; 0 before the first trial."""
    trial: TrialView | None
    """Null: no adapter is on trial."""
    here: HereView
    history: list[TrialMoveView]
    """Newest first, 20 at most."""


class RateView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    requests: int
    """Those after which the user took something within the horizon."""
    users: int
    hits: float | None
    """Share of them whose list held something that was taken."""


class ComparisonView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    control: RateView
    candidate: RateView
    difference: float | None
    """Candidate less control."""
    ci95: tuple[float, float] | None
    """Its 95 % interval, users as clusters; null for fewer than two."""


class ShadowReportView(BaseModel):
    """Over the same requests. Nobody saw the candidate's lists, so that hits lean towards control."""

    model_config = ConfigDict(from_attributes=True)

    requests: int
    overlap: float | None
    """Mean share of the shown items that the candidate's list held as well."""
    rank_shift: float | None
    """Mean places by which items in both lists moved."""
    rank_correlation: float | None
    """Mean Kendall's tau of the items in both lists."""
    hits: ComparisonView
    organic_hits: ComparisonView
    """Only on what users took without naming a recommendation; leans less towards what was shown."""


class TrialReportView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    adapter_version: str
    since: datetime
    horizon_s: float
    shadow: ShadowReportView
    canary: ComparisonView
    """Of the two arms at the same time, each on what it was shown."""

    @classmethod
    def of(cls, found: TrialReport) -> "TrialReportView":
        return cls(
            adapter_version=found.adapter_version,
            since=found.since,
            horizon_s=found.horizon.total_seconds(),
            shadow=ShadowReportView.model_validate(found.shadow),
            canary=ComparisonView.model_validate(found.canary),
        )


class TrialChangeView(BaseModel):
    revision: int
    deed: Deed
    trial: TrialView | None
    """Null after an end."""
    audit_id: str

    @classmethod
    def of(cls, row: TrialRow) -> "TrialChangeView":
        trial = None if row.trial is None else TrialView.model_validate(row.trial)
        return cls(revision=row.revision, deed=row.deed, trial=trial, audit_id=row.audit_id)

"""What is sent and answered, every schema, so long. Made by `python -m service.http.client_source`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationView:
    from_version: str | None
    to_version: str | None
    revision: int
    audit_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivePointer:
    revision: int
    base_id: str | None
    adapter_version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDetailView:
    adapter_version: str
    base_id: str
    parent_version: str | None
    window_id: int | None
    state: str
    """candidate, passed, active, retired, refused, corrupt, collected, or what a newer server adds."""
    digest: str
    method: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, Any]
    trained_through: datetime | None
    created_at: datetime
    active: bool
    revision: int
    history: list[MoveView]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterView:
    adapter_version: str
    base_id: str
    parent_version: str | None
    window_id: int | None
    state: str
    """candidate, passed, active, retired, refused, corrupt, collected, or what a newer server adds."""
    digest: str
    method: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, Any]
    trained_through: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    audit_id: str
    created_at: datetime
    actor: str
    action: str
    subject: str | None
    details: dict[str, Any] | None
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    entries: list[AuditEntry]
    next_before: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    control: RateView
    candidate: RateView
    difference: float | None
    ci95: list[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """How many rows of a user were erased."""

    events: int
    recommendations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationView:
    subject: str
    adapter_version: str | None
    users: int
    hit_5: float
    hit_10: float
    ndcg_5: float
    ndcg_10: float
    comparison: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One interaction of a user with an item. Unknown fields are refused, so that a misspelt one is noticed."""

    event_id: str = field(default_factory=lambda: str(uuid4()))
    user_id: str
    item_id: str
    event_type: str
    occurred_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    value: float | None = None
    recommendation_id: str | None = None
    position: int | None = None
    properties: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    events: list[StoredEvent]
    next_before_seq: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Conditions on the items of the reply; an item has to meet all that are given. Names in any case. That an
    item is available, and not seen or excluded, holds whatever the filters say.
    """

    category: str | None = None
    categories: list[str] | None = None
    brand: str | None = None
    item_ids: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    status: str
    parts: dict[str, PartReport] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HereView:
    """What the replica that answered does of the trial; GET /v1/admin/replicas has all of them."""

    loaded: str | None
    trouble: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """accepted + duplicates + len(rejected) is the number of events sent."""

    accepted: int
    duplicates: int
    rejected: list[Rejection]
    unknown_items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of the catalogue. A PUT replaces it whole: a field that is left out gets its default."""

    item_id: str
    title: str
    description: str | None = None
    categories: list[str] = field(default_factory=list)
    brand: str | None = None
    available: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemView:
    item_id: str
    title: str
    description: str | None
    categories: list[str]
    brand: str | None
    available: bool
    base_id: str | None
    codes: list[int] | None
    created_at: datetime
    updated_at: datetime
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model that ranked the reply; trained_through is the newest event that it has learnt from."""

    adapter_version: str | None
    base: str
    trained_through: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelQuality:
    shown: int
    hits: int
    hit_rate: float | None
    hit_rate_low: float | None
    hit_rate_high: float | None
    gain: float | None
    users: int
    anonymous: int
    distinct_items: int
    coverage: float | None
    novelty: float | None
    repetition: float | None
    model: str
    strategy: str
    arm: str
    immature: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveView:
    audit_id: str
    revision: int
    action: str
    """base, promote, rollback, window, or what a newer server adds."""
    from_version: str | None
    to_version: str | None
    window_id: int | None
    actor: str
    reason: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWindow:
    after_seq: int
    events: int
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    ready: bool
    state: str
    detail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteRequest:
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutReport:
    created: int
    updated: int
    unchanged: int
    catalog_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityView:
    horizon_seconds: float | None
    counted_through: datetime | None
    immature_capped: bool
    models: list[ModelQuality]
    watch: WatchView


@dataclass(frozen=True, slots=True, kw_only=True)
class RateView:
    requests: int
    users: int
    hits: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationReply:
    recommendation_id: str
    items: list[RecommendedItem]
    strategy: str
    """personalised, base, popular, or what a newer server adds."""
    fallback_reason: str | None = None
    """no_model, no_adapter, no_history, history_unknown, overloaded, deadline, engine_error, store_unavailable, or
    what a newer server adds."""
    model: ModelInfo | None = None
    filters_applied: str | None = None
    """strict, relaxed, or what a newer server adds."""
    missing: int = 0
    unknown_history: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationRequest:
    """Whose next items, how many, and which not. Without user_id and history the reply is popular items."""

    user_id: str | None = None
    history: list[str] | None = None
    limit: int = 10
    exclude_item_ids: list[str] = field(default_factory=list)
    include_seen: bool = False
    filters: Filters = field(default_factory=lambda: Filters())
    filter_mode: str | None = None
    """strict, relaxed, or what a newer server adds."""
    diversity: float = 0.0
    exploration: float | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedItem:
    """score: log-probability of the item's semantic ID (personalised, base), or popularity relative to the top
    item.
    """

    item_id: str
    rank: int
    score: float
    title: str | None = None
    reasons: list[str] | None = None
    filtered: bool | None = None
    exploration: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryView:
    active: ActivePointer
    adapters: list[AdapterView]
    next_before: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An event that was not stored. code: invalid_event, future_event, event_id_conflict or erased_user."""

    index: int
    event_id: str | None
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    replica_id: str
    host: str
    process: int
    started_at: datetime
    seen_at: datetime
    late: bool
    revision: int | None
    base_id: str | None
    adapter_version: str | None
    wanted_base_id: str | None
    wanted_version: str | None
    degraded: str | None
    trial_version: str | None = None
    trial_trouble: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasView:
    replicas: list[ReplicaView]


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequest:
    to_version: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReportView:
    """Over the same requests. Nobody saw the candidate's lists, so that hits lean towards control."""

    requests: int
    overlap: float | None
    rank_shift: float | None
    rank_correlation: float | None
    hits: ComparisonView
    organic_hits: ComparisonView


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarItem:
    """score: log-probability of being taken after the item (personalised, base), or popularity. shared_levels:
    levels of the semantic ID, 0 to 4, that it shares from the first on. shared_categories: how many.
    """

    item_id: str
    rank: int
    score: float
    title: str
    shared_levels: int
    shared_categories: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarReply:
    """Nearest first: by shared_levels, then by score. Before an item has a semantic ID: by shared_categories."""

    item_id: str
    items: list[SimilarItem]
    strategy: str
    """personalised, base, popular, or what a newer server adds."""
    fallback_reason: str | None = None
    """no_model, no_adapter, no_history, history_unknown, overloaded, deadline, engine_error, store_unavailable, or
    what a newer server adds."""
    model: ModelInfo | None = None
    missing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it was kept."""

    seq: int
    event_id: str
    user_id: str
    item_id: str
    event_type: str
    occurred_at: datetime
    received_at: datetime
    value: float | None
    recommendation_id: str | None
    position: int | None
    properties: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    item_id: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecommendation:
    """What the store keeps of a recommendation; docs/time-travel.md says what each part of `computed` is."""

    recommendation_id: str
    user_id: str | None
    created_at: datetime
    strategy: str
    """personalised, base, popular, or what a newer server adds."""
    fallback_reason: str | None
    """no_model, no_adapter, no_history, history_unknown, overloaded, deadline, engine_error, store_unavailable, or
    what a newer server adds."""
    base_id: str | None
    adapter_version: str | None
    catalog_revision: int
    history: list[str]
    items: list[StoredItem]
    request: dict[str, Any] | None
    computed: dict[str, Any] | None
    settings: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialChangeView:
    revision: int
    deed: str
    """start, change, end, or what a newer server adds."""
    trial: TrialView | None
    audit_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialMoveView:
    revision: int
    deed: str
    """start, change, end, or what a newer server adds."""
    adapter_version: str
    kind: str
    """shadow, canary, or what a newer server adds."""
    share: float
    ends_at: datetime | None
    because: str | None
    """asked, expired, promoted, base_changed, refused, corrupt, collected, live_metric, control_changed,
    superseded, or what a newer server adds."""
    actor: str
    reason: str | None
    audit_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReportView:
    adapter_version: str
    since: datetime
    horizon_s: float
    shadow: ShadowReportView
    canary: ComparisonView


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest:
    adapter_version: str
    kind: str
    """shadow, canary, or what a newer server adds."""
    share: float
    ends_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    adapter_version: str
    base_id: str
    kind: str
    """shadow, canary, or what a newer server adds."""
    share: float
    salt: str
    started_at: datetime
    ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialsView:
    revision: int
    trial: TrialView | None
    here: HereView
    history: list[TrialMoveView]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchView:
    """What the monitor makes of the serving version. It acts only with ADAPTIDE_ROLLBACK_AUTOMATIC."""

    serving: str | None
    previous: str | None
    automatic: bool
    fell: bool
    control: str | None
    """concurrent, popularity, none, or what a newer server adds."""
    at_most: float | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowView:
    window_id: int
    after_seq: int
    through_seq: int
    events: int
    state: str
    """sealed, training, promoted, canary, refused, no_change, skipped, failed, base, or what a newer server adds."""
    sealed_at: datetime
    sealed_because: str
    """age, count, manual, base, or what a newer server adds."""
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None = None
    next_attempt_at: datetime | None = None
    method: str | None
    base_id: str | None
    incumbent_version: str | None
    candidate_version: str | None
    verdict: str | None
    reason: str | None
    steps: list[dict[str, Any]] | None
    statistics: dict[str, Any] | None
    evaluations: list[EvaluationView]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsView:
    windows: list[WindowView]
    next_before: int | None
    open: OpenWindow

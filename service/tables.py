"""Every table of the store in one metadata; importing this module registers them all."""

from service.access.tables import api_keys
from service.adapters.tables import activations, active_adapter, adapters, bases
from service.audit.tables import audit_log
from service.catalog.tables import catalog_revision, item_history, items
from service.dashboard.tables import dashboard_sessions
from service.events.tables import event_ids, events, item_popularity, popularity_state
from service.kit.db import metadata
from service.kit.leases import leases
from service.quality.tables import quality_buckets, quality_state
from service.recommend.tables import recommendation_settings, recommendations
from service.replicas.tables import replicas
from service.trials.tables import shadow_rankings, trial_moves
from service.users.tables import erased_users, erasure_state
from service.windows.tables import evaluations, windows


def declared(name: str | None, kind: str, parents: object) -> bool:
    """For Alembic's include_name: False for the partitions of events, which come and go."""
    return kind != "table" or name is None or not name.startswith("events_")


__all__ = [
    "activations",
    "active_adapter",
    "adapters",
    "api_keys",
    "audit_log",
    "bases",
    "catalog_revision",
    "dashboard_sessions",
    "declared",
    "erased_users",
    "erasure_state",
    "evaluations",
    "event_ids",
    "events",
    "item_history",
    "item_popularity",
    "items",
    "leases",
    "metadata",
    "popularity_state",
    "quality_buckets",
    "quality_state",
    "recommendation_settings",
    "recommendations",
    "replicas",
    "shadow_rankings",
    "trial_moves",
    "windows",
]

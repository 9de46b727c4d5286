"""What keeps the store in shape beside the updates: partitions made ahead, and old rows removed."""

import structlog

from service.errors import AdaptideError
from service.events import partitions
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.settings import Settings
from service.windows import retention

RETENTION_LEASE = "retention"

log = structlog.get_logger(__name__)


def upkeep(database: Database, clock: Clock, settings: Settings, owner: str) -> None:
    """Do what is due. Never raises: whatever is in the way is logged, and tried again the next time."""
    try:
        for made in partitions.ensure(database, settings.event_partition):
            log.info("partition_made", name=made.name, first=made.first, end=made.end)
    except AdaptideError as error:
        log.warning("partition_not_made", reason=error.detail)
    if not retention.is_wanted(settings):
        return
    try:
        with held(database, RETENTION_LEASE, owner, settings.lease_duration) as lease:
            if lease is not None:
                retention.remove_old(database, clock, settings)
    except AdaptideError as error:
        log.warning("old_rows_not_removed", reason=error.detail)

"""A canary's candidate beside what serves, live; and its trial is ended when it fell below that.

Both answer at the same time, so hour and popularity are the same for both. An ended trial of the updater is never
promoted (service.trials.promotion).
"""

import structlog

from service.adapters import repository as adapters
from service.adapters.moves import MoveRequest
from service.errors import Conflict, PreconditionFailed
from service.kit import leases
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.leases import Lease
from service.quality.monitor import ACTOR
from service.quality.service import compare_arms
from service.settings import Settings
from service.trials import repository
from service.trials import service as trials
from service.trials.repository import TrialRow
from service.trials.states import EndReason, Kind

log = structlog.get_logger(__name__)


def refuse(database: Database, clock: Clock, settings: Settings, lease: Lease) -> TrialRow | None:
    """Look at the canary, and end it if its candidate fell below what serves and ADAPTIDE_ROLLBACK_AUTOMATIC is on.

    None when nothing was ended. Raises LeaseLost, StoreUnavailable.
    """
    with database.read() as connection:
        latest, pointer = repository.latest(connection), adapters.read_pointer(connection)
    trial = None if latest is None else latest.trial
    if latest is None or trial is None or trial.kind is not Kind.CANARY or trial.base_id != pointer.base_id:
        return None
    serving = pointer.adapter_version or trial.base_id
    found = compare_arms(
        database, settings, challenger=trial.adapter_version, incumbent=serving, since=trial.started_at
    )
    if not found.fell:
        return None
    if not settings.rollback_automatic:
        log.warning("live_quality_fell", adapter_version=trial.adapter_version, previous=serving, reason=found.why)
        return None
    reason = f"live hit rate: {found.why} ({found.control.value} control)"
    request = MoveRequest(ACTOR, reason, latest.revision, f"{ACTOR}-trial-{latest.revision}")
    with database.write() as connection:
        leases.check(connection, lease)
    try:
        done = trials.end(database, clock, request, EndReason.LIVE_METRIC)
    except (Conflict, PreconditionFailed):  # it has ended, or is another one by now
        return None
    log.error("canary_ended_automatically", adapter_version=trial.adapter_version, reason=reason)
    return done

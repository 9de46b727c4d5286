"""Joins what was recommended during a trial with what users took afterwards."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.errors import NotFound
from service.kit.db import Database
from service.trials import repository
from service.trials.report import Comparison, Judged, ShadowReport, of_canary, of_shadow
from service.trials.repository import Answered, Taken
from service.trials.states import Arm, Kind

PAGE = 500
MOST = 20_000
"""Requests that a report looks at, the newest ones: some seconds of reading."""
SEARCHED = 5 * MOST
"""Recommendations among which those of a canary's arms are looked for, the newest ones: most may be in none."""


@dataclass(frozen=True, slots=True)
class TrialReport:
    """since: when the candidate's latest trial began, or a later moment where not all requests were looked at."""

    adapter_version: str
    since: datetime
    horizon: timedelta
    shadow: ShadowReport
    canary: Comparison


def report(
    database: Database, horizon: timedelta, ignored_types: frozenset[str], version: str | None = None
) -> TrialReport:
    """How a candidate did in its latest trial; version None: of the latest one. Raises NotFound without any.

    What a user took counts when it occurred within the horizon after the reply, or names it.
    """
    with database.read() as connection:
        trial = repository.last_trial(connection, version)
        if trial is None:
            which = f"adapter {version!r}" if version else "no adapter"
            raise NotFound(f"{which} was {'never ' if version else ''}on trial; see: adaptide adapters trial")
        version, since, until = trial.adapter_version, trial.since, trial.until
        shadowed, armed = [], []
        if Kind.SHADOW in trial.kinds:
            shadowed = repository.shadowed(connection, version, since=since, limit=MOST)
        if Kind.CANARY in trial.kinds:
            since = repository.newest_since(connection, since=since, until=until, limit=SEARCHED)
            armed = repository.armed(connection, since=since, until=until, limit=MOST)
    arms: dict[Arm, list[Answered]] = {arm: [row for row in armed if row.arm == arm.value] for arm in Arm}
    judged = _judge(database, shadowed, horizon, ignored_types)
    control, canary = (_judge(database, arms[arm], horizon, ignored_types) for arm in (Arm.CONTROL, Arm.CANARY))
    for rows in (shadowed, armed):
        if len(rows) == MOST:
            since = max(since, rows[-1].created_at)
    return TrialReport(version, since, horizon, of_shadow(judged), of_canary(control, canary))


def _judge(
    database: Database, rows: Sequence[Answered], horizon: timedelta, ignored_types: frozenset[str]
) -> list[Judged]:
    judged = []
    for first in range(0, len(rows), PAGE):
        page = rows[first : first + PAGE]
        users = {row.user_id for row in page if row.user_id is not None}
        times = [row.created_at for row in page]
        with database.read() as connection:
            by_user: dict[str, list[Taken]] = defaultdict(list)
            for one in repository.taken(connection, users, min(times), max(times) + horizon, ignored_types):
                by_user[one.user_id].append(one)
            naming: dict[str, list[Taken]] = defaultdict(list)
            for one in repository.naming(connection, [row.recommendation_id for row in page], ignored_types):
                naming[one.recommendation_id or ""].append(one)
        for row in page:
            own = [
                one
                for one in by_user.get(row.user_id or "", [])
                if row.created_at < one.occurred_at <= row.created_at + horizon
            ]
            taken = frozenset(one.item_id for one in (*own, *naming.get(row.recommendation_id, [])))
            organic = frozenset(one.item_id for one in own if one.recommendation_id is None)
            judged.append(Judged(row.user_id or row.recommendation_id, row.shown, row.shadow, taken, organic))
    return judged

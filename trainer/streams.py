"""The store's events of one window -> each user's stream of catalogue rows."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter

import numpy as np

from service.catalog.index import CatalogueIndex
from service.events import repository
from service.kit.db import Database
from service.settings import Settings
from trainer import pace
from trainer.examples import Rows, UserStream

USERS_PER_QUERY = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class WindowStreams:
    """events: interactions in the window; unknown: those whose item has no codes (yet), which are left out.

    newest: the latest occurred_at of what is learnt from, None for an empty window. suspects: users that do not act
    like people (trainer.pace), and how many of the events are theirs; they are learnt from like any other.
    """

    streams: tuple[UserStream, ...]
    events: int
    unknown: int
    newest: datetime | None
    suspects: int
    suspect_events: int


def load_streams(
    database: Database, settings: Settings, index: CatalogueIndex, after_seq: int, through_seq: int
) -> WindowStreams:
    """Users with at least ADAPTIDE_MIN_EVENTS_PER_USER known interactions in the window, with what they did before."""
    ignored = settings.ignored_event_types
    streams: list[UserStream] = []
    total, unknown, newest = 0, 0, None
    suspects, suspect_events = 0, 0
    with database.read() as connection:
        interactions = repository.window_interactions(connection, after_seq, through_seq, ignored)
        windows: dict[str, Rows] = {}
        for user_id, own in groupby(interactions, key=itemgetter(0)):
            known: list[int] = []
            times: list[datetime] = []
            for _, item_id, at, _seq in own:
                times.append(at)
                row = index.row_of.get(item_id)
                if row is None or not index.coded[row]:
                    unknown += 1
                    continue
                known.append(row)
                newest = at if newest is None else max(newest, at)
            total += len(times)
            if pace.is_suspect(times):
                suspects += 1
                suspect_events += len(times)
            if len(known) >= settings.min_events_per_user:
                windows[user_id] = np.array(known, dtype=np.int64)
        users = sorted(windows)
        for first in range(0, len(users), USERS_PER_QUERY):
            part = users[first : first + USERS_PER_QUERY]
            past = repository.earlier_items(connection, part, after_seq, settings.seen_items, ignored)
            earlier = {user: index.with_codes(index.rows(own)) for user, own in past.items()}
            nothing = np.empty(0, dtype=np.int64)
            streams += [UserStream(user, earlier.get(user, nothing), windows[user]) for user in part]
    return WindowStreams(tuple(streams), total, unknown, newest, suspects, suspect_events)

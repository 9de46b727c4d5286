"""The store's events of one window -> each user's stream of catalogue rows."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter

import numpy as np

from service.catalog.index import CatalogueIndex
from service.events import repository
from service.kit.db import Database
from service.recommend.popularity import Popularity
from service.settings import Settings
from trainer.examples import Rows, UserStream

USERS_PER_QUERY = 1_000
EVENTS_PER_QUERY = 50_000


@dataclass(frozen=True, slots=True, eq=False)
class WindowStreams:
    """events: interactions in the window; unknown: those whose item has no codes (yet), which are left out.

    newest: the latest occurred_at of what is learnt from, None for an empty window.
    """

    streams: tuple[UserStream, ...]
    events: int
    unknown: int
    newest: datetime | None


def load_streams(
    database: Database, settings: Settings, index: CatalogueIndex, after_seq: int, through_seq: int
) -> WindowStreams:
    """Users with at least ADAPTIDE_MIN_EVENTS_PER_USER known interactions in the window, with what they did before."""
    ignored = settings.ignored_event_types
    streams: list[UserStream] = []
    total, unknown, newest = 0, 0, None
    with database.read() as connection:
        interactions = repository.window_interactions(connection, after_seq, through_seq, ignored)
        windows: dict[str, Rows] = {}
        for user_id, own in groupby(interactions, key=itemgetter(0)):
            known: list[int] = []
            for _, item_id, at, _seq in own:
                total += 1
                row = index.row_of.get(item_id)
                if row is None or not index.coded[row]:
                    unknown += 1
                    continue
                known.append(row)
                newest = at if newest is None else max(newest, at)
            if len(known) >= settings.min_events_per_user:
                windows[user_id] = np.array(known, dtype=np.int64)
        users = sorted(windows)
        for first in range(0, len(users), USERS_PER_QUERY):
            part = users[first : first + USERS_PER_QUERY]
            past = repository.earlier_items(connection, part, after_seq, settings.seen_items, ignored)
            earlier = {user: index.with_codes(index.rows(own)) for user, own in past.items()}
            nothing = np.empty(0, dtype=np.int64)
            streams += [UserStream(user, earlier.get(user, nothing), windows[user]) for user in part]
    return WindowStreams(tuple(streams), total, unknown, newest)


def popularity_through(
    database: Database, popularity: Popularity, after_seq: int, through_seq: int, ignored: frozenset[str]
) -> None:
    """Add the events with after_seq < seq <= through_seq, as the service's own popularity counts them."""
    seq = after_seq
    while seq < through_seq:
        with database.read() as connection:
            rows = repository.interactions_after(connection, seq, EVENTS_PER_QUERY)
        rows = [row for row in rows if row.seq <= through_seq]
        if not rows:
            break
        popularity.add((row.item_id, row.occurred_at) for row in rows if row.event_type not in ignored)
        seq = rows[-1].seq

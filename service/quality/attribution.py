"""Which recommendation an event is to be credited to. Pure."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Shown:
    """A recommendation. user_id None: made for nobody. item_ids: in rank order."""

    recommendation_id: str
    user_id: str | None
    at: datetime
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """An interaction, and the recommendation that it names, if any."""

    user_id: str
    item_id: str
    at: datetime
    recommendation_id: str | None = None


def credits(
    shown: Collection[Shown],
    taken: Iterable[Taken],
    horizon: timedelta,
    unknown_after: Mapping[str, datetime] | None = None,
) -> dict[str, set[str]]:
    """recommendation_id -> the items that were taken from it. An event is credited to one recommendation at most.

    A recommendation qualifies when it holds the item, was made for the event's user, and the event occurred no later
    than `horizon` after it. The one that the event names comes first, also when it was made for nobody and whatever
    the event's clock says of the time before it; else it is the latest one made before the event (or at its moment).
    unknown_after: user -> until when all of the user's recommendations are among `shown`; an event after that which
    names none of them is credited to nothing, for a later one may have held its item.
    """
    by_id = {one.recommendation_id: one for one in shown}
    holding: dict[tuple[str, str], list[tuple[datetime, str]]] = {}
    for one in by_id.values():
        if one.user_id is not None:
            for item_id in set(one.item_ids):
                holding.setdefault((one.user_id, item_id), []).append((one.at, one.recommendation_id))
    for own in holding.values():
        own.sort()
    found: dict[str, set[str]] = {}
    for event in taken:
        named = by_id.get(event.recommendation_id or "")
        if named is not None and _is_of(named, event, horizon):
            found.setdefault(named.recommendation_id, set()).add(event.item_id)
            continue
        if unknown_after is not None and (known := unknown_after.get(event.user_id)) is not None and event.at > known:
            continue
        own = holding.get((event.user_id, event.item_id), [])
        before = bisect_right(own, event.at, key=lambda one: one[0])
        if before and event.at - own[before - 1][0] <= horizon:
            found.setdefault(own[before - 1][1], set()).add(event.item_id)
    return found


def _is_of(named: Shown, event: Taken, horizon: timedelta) -> bool:
    return named.user_id in (None, event.user_id) and event.item_id in named.item_ids and event.at <= named.at + horizon

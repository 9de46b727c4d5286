"""What a trial of a candidate can be, what it can become, and what ends it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from service.adapters.repository import Pointer
from service.adapters.states import AdapterState


class Kind(StrEnum):
    SHADOW = "shadow"
    """The candidate ranks what the active model has answered, and nobody sees it."""
    CANARY = "canary"
    """The candidate answers a share of the users."""


class Arm(StrEnum):
    """Which of the two a canary puts a request into."""

    CONTROL = "control"
    CANARY = "canary"


class Deed(StrEnum):
    START = "start"
    CHANGE = "change"
    END = "end"


class EndReason(StrEnum):
    ASKED = "asked"
    """By an admin."""
    EXPIRED = "expired"
    PROMOTED = "promoted"
    """The candidate is the active adapter."""
    BASE_CHANGED = "base_changed"
    """Another base is active, which the candidate was not made for."""
    REFUSED = "refused"
    CORRUPT = "corrupt"
    COLLECTED = "collected"
    LIVE_METRIC = "live_metric"
    """What users did spoke against it."""
    CONTROL_CHANGED = "control_changed"
    """The updater's own: what its candidate was made from and compared with does not serve any more."""
    SUPERSEDED = "superseded"
    """A window's candidate was put on trial in its place."""


TRANSITIONS: dict[Kind | None, frozenset[Kind | None]] = {
    None: frozenset({Kind.SHADOW, Kind.CANARY}),
    # To itself: another share or another end. A trial changes only with its candidate the same.
    Kind.SHADOW: frozenset({Kind.SHADOW, Kind.CANARY, None}),
    Kind.CANARY: frozenset({Kind.SHADOW, Kind.CANARY, None}),
}
"""From kind to kind; None: no trial."""

_ENDED_BY_STATE = {
    AdapterState.REFUSED: EndReason.REFUSED,
    AdapterState.CORRUPT: EndReason.CORRUPT,
    AdapterState.COLLECTED: EndReason.COLLECTED,
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate beside the active adapter.

    share: of users (shadow: of requests without a user, too), in (0, 1]. salt: of the hash that picks them. A change
    keeps the salt and started_at, so that a larger share holds all users of the smaller one.
    """

    adapter_version: str
    base_id: str
    kind: Kind
    share: float
    salt: str
    started_at: datetime
    ends_at: datetime | None = None


def deed(old: Kind | None, new: Kind | None) -> Deed | None:
    """What leads from `old` to `new`; None: nothing does."""
    if new not in TRANSITIONS[old]:
        return None
    if old is None:
        return Deed.START
    return Deed.END if new is None else Deed.CHANGE


def over(trial: Trial, pointer: Pointer, state: AdapterState, now: datetime) -> EndReason | None:
    """Why the trial cannot go on, None while it can. state: the candidate's."""
    if state in _ENDED_BY_STATE:
        return _ENDED_BY_STATE[state]
    if pointer.base_id != trial.base_id:
        return EndReason.BASE_CHANGED
    if pointer.adapter_version == trial.adapter_version:
        return EndReason.PROMOTED
    if trial.ends_at is not None and now >= trial.ends_at:
        return EndReason.EXPIRED
    return None

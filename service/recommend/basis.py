"""What a reply depended on, as its row keeps it: enough to compute it again, and no more (docs/time-travel.md).

`request`: the request's fields that differ from their defaults, and its limit; whatever field is added later is kept
the same way. `computed`, each part only where it counted:

- past: [the highest sequence number of the user's events that were read, how many distinct items they hold]
- popular: [the last event that popularity counted, rows of the catalogue that it knew]
- batch: [prompts in the pass, place among them, items of the longest]
- batches: the same of each search of a list that one search does not give, and which one it was (generation.again)
- codes: the base whose codes said what kinds of items there are, where popularity ranked a list that is spread
- interaction: what one interaction weighed when cold items were looked for
- copied_from: the recommendation whose kept answer this is
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson

from service.generation.again import question_of
from service.generation.engine import Batch, GenerationRequest
from service.recommend.history import UserPast
from service.recommend.schemas import RecommendationRequest
from service.settings import Settings

FEW = 16
MOST_CANDIDATES_KEPT = 500
"""Item ids of a filter: more would make one record as large as a thousand others."""
LEFT_OUT = True
"""In place of more."""
AS_PROMPTED = True
"""In place of a history that was given, where the row's `history` holds the same items."""


@dataclass(frozen=True, slots=True)
class RecordedSettings:
    """What many rows share, kept once. id: 16 hex digits; the same details have the same one on every replica."""

    id: str
    details: Mapping[str, Any]


class SettingsIds:
    """The recorded settings of this process's replies, by what computed them."""

    def __init__(self, settings: Settings) -> None:
        self._own = {
            "adaptide": _own_version(),
            "beams": settings.beams,
            "history_items": settings.history_items,
            "seen_items": settings.seen_items,
            "ignored_event_types": sorted(settings.ignored_event_types),
            "popularity_half_life_s": settings.popularity_half_life.total_seconds(),
            "exploration_events": settings.exploration_events,
        }
        self._known: dict[int, tuple[Mapping[str, Any] | None, RecordedSettings]] = {}

    def of(self, batch: Batch | None) -> RecordedSettings:
        """batch: None where no model computed."""
        by = None if batch is None else batch.by
        known = self._known.get(id(by))
        if known is None or known[0] is not by:
            if len(self._known) >= FEW:  # of models that have been replaced
                self._known.clear()
            details = self._own | {"computed_by": by}
            digest = hashlib.blake2b(orjson.dumps(details, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()
            self._known[id(by)] = known = by, RecordedSettings(digest, details)
        return known[1]


def asked(request: RecommendationRequest, prompt: Sequence[str]) -> dict[str, Any]:
    """The row's `request`; the user has a column. prompt: the row's `history`."""
    left_out = {"user_id"}
    if not request.exploration:
        left_out.add("exploration")
    if not request.filters.given:
        left_out.add("filter_mode")
    kept = request.model_dump(mode="json", exclude_defaults=True, exclude=left_out) | {"limit": request.limit}
    if len(request.filters.item_ids or ()) > MOST_CANDIDATES_KEPT:
        kept["filters"]["item_ids"] = LEFT_OUT
    if request.history is not None and request.history == list(prompt):
        kept["history"] = AS_PROMPTED
    return kept


def request_of(user_id: str | None, kept: Mapping[str, Any], prompt: Sequence[str]) -> RecommendationRequest:
    """What was asked for, from the row. Raises ValueError for a field that this version does not know."""
    fields = dict(kept)
    if fields.get("history") is AS_PROMPTED:
        fields["history"] = list(prompt)
    return RecommendationRequest(user_id=user_id, **fields)


def past_basis(past: UserPast) -> dict[str, Any]:
    return {"past": [past.through_seq, len(past.seen)]} if past.through_seq else {}


def batch_basis(batch: Batch | None, part: GenerationRequest | None = None) -> dict[str, Any]:
    """part: the search, where it is one of several of a list."""
    if batch is None:
        return {}
    shape = [batch.size, batch.place, batch.longest]
    return {"batch": shape} if part is None else {"batches": [[*shape, *question_of(part)]]}


def joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a list what its parts depended on."""
    whole: dict[str, Any] = {}
    for part in parts:
        batches = [*whole.get("batches", ()), *part.get("batches", ())]
        whole = {**part, **whole} | ({"batches": batches} if batches else {})
    return whole


def _own_version() -> str:
    try:
        return version("adaptide")
    except PackageNotFoundError:
        return "unknown"

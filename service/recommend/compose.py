"""A list that one search does not give: filters that are filled up, and places for cold items.

Its parts are asked for together; each is a Selection, ranked by the model or, where it does not answer, by popularity.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.recommend.basis import RecordedSettings, joined
from service.recommend.exploration import cold_rows, drawn, slots
from service.recommend.filters import matching, without
from service.recommend.ranking import Float64, RankedRows, Selection
from service.recommend.schemas import FallbackReason, RecommendationRequest, Strategy
from service.settings import FilterMode


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """base_id and adapter_version: of the model that ranked the rows; no base_id when none did.

    outside: rows that do not meet the filters and fill the list; cold: rows that have their places for being cold.
    computed, settings: what its record keeps of how they were ranked (service.recommend.basis); settings: an id where
    the record of another recommendation has stored them.
    """

    rows: RankedRows
    strategy: Strategy
    reason: FallbackReason | None
    base_id: str | None = None
    adapter_version: str | None = None
    outside: frozenset[int] = frozenset()
    cold: frozenset[int] = frozenset()
    computed: Mapping[str, Any] = field(default_factory=dict)
    settings: RecordedSettings | str | None = None

    @classmethod
    def by_model(
        cls,
        rows: RankedRows,
        base_id: str,
        adapter_version: str | None,
        computed: Mapping[str, Any] | None = None,
        settings: RecordedSettings | str | None = None,
    ) -> "Ranked":
        personal = adapter_version is not None
        return cls(
            rows,
            Strategy.PERSONALISED if personal else Strategy.BASE,
            None if personal else FallbackReason.NO_ADAPTER,
            base_id,
            adapter_version,
            computed=computed or {},
            settings=settings,
        )

    @property
    def model(self) -> tuple[str | None, str | None]:
        return self.base_id, self.adapter_version


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The selections of one list: `main` and, where they are wanted, `fill` (outside of the filters) and `cold`."""

    main: Selection
    fill: Selection | None
    cold: Selection | None
    slots: int


def parts_of(
    request: RecommendationRequest,
    recommendation_id: str,
    index: CatalogueIndex,
    excluded: Int64,
    popularity: Float64,
    interaction: float,
    fewer_than: int,
) -> Parts:
    """Pure, and a pass over arrays as long as the catalogue. excluded: rows that must not be returned.

    interaction, fewer_than: see cold_rows.
    """
    allowed, fill, cold = None, None, None
    if request.filters.given:
        allowed = without(matching(index, request.filters), excluded)
    main = Selection(request.limit, excluded, allowed, request.diversity)
    if allowed is not None and request.filter_mode is FilterMode.RELAXED:
        # Until it is encoded an item can be ranked by popularity only.
        if len(index.with_codes(allowed)) < request.limit:
            fill = Selection(request.limit, np.concatenate([excluded, allowed]), None, request.diversity)
    places = slots(recommendation_id, request.exploration or 0.0, request.limit)
    if places:
        rows = without(cold_rows(index, popularity, interaction, fewer_than), excluded)
        if allowed is not None:
            rows = np.intersect1d(rows, allowed, assume_unique=True)
        # As many as the list is long: some are in it anyhow, and searches of one width share a batch.
        cold = Selection(request.limit, excluded, rows)
    return Parts(main, fill, cold, places)


async def compose(
    parts: Parts,
    rank: Callable[[Selection], Awaitable[Ranked]],
    popular: Callable[[Selection, FallbackReason], Awaitable[Ranked]],
    popularity: Float64,
    recommendation_id: str,
) -> Ranked:
    """The list: what is wanted, then what fills it, then cold items, which score less than all that are wanted.

    rank: by the model or, when it does not answer, by popularity; popular: by popularity in any case.
    """
    wanted = {"main": parts.main, "fill": parts.fill, "cold": parts.cold}
    found = await _alike({name: part for name, part in wanted.items() if part is not None}, rank, popular)
    main, fill, cold = (found.get(name) for name in wanted)
    assert main is not None  # noqa: S101  # it is always wanted
    limit, kept = parts.main.limit, parts.main.limit - parts.slots
    own = _pairs(main.rows)
    first, last = dict(list(own.items())[:kept]), list(own.items())[kept:]
    explored: dict[int, float] = {}
    if cold is not None and parts.cold is not None and parts.cold.allowed is not None:
        chosen = cold.rows
        if main.base_id is None:  # popularity says nothing about items that nobody has taken yet
            rows = drawn(recommendation_id, without(parts.cold.allowed, np.array(list(first), np.int64)), parts.slots)
            chosen = RankedRows(rows, popularity[rows])
        explored = dict([pair for pair in _pairs(chosen).items() if pair[0] not in first][: parts.slots])
    listed = first | dict([pair for pair in last if pair[0] not in explored][: parts.slots - len(explored)])
    outside = {} if fill is None else dict(list(_pairs(fill.rows).items())[: limit - len(listed) - len(explored)])
    listed |= outside | explored
    return replace(
        main,
        rows=RankedRows(np.array(list(listed), dtype=np.int64), np.array(list(listed.values()))),
        outside=frozenset(outside),
        cold=frozenset(explored),
        computed=joined(part.computed for part in found.values()),
    )


async def _alike(
    wanted: Mapping[str, Selection],
    rank: Callable[[Selection], Awaitable[Ranked]],
    popular: Callable[[Selection, FallbackReason], Awaitable[Ranked]],
) -> dict[str, Ranked]:
    """All parts ranked by one model, or all by popularity: other scores cannot stand in one list."""
    found = await asyncio.gather(*map(rank, wanted.values()))
    if len({one.model for one in found}) > 1 and all(one.base_id for one in found):
        found = await asyncio.gather(*map(rank, wanted.values()))  # the model was swapped in between
    if len({one.model for one in found}) > 1:
        reason = next((one.reason for one in found if one.base_id is None), None) or FallbackReason.NO_MODEL
        found = [await popular(part, reason) for part in wanted.values()]
    return dict(zip(wanted, found, strict=True))


def _pairs(rows: RankedRows) -> dict[int, float]:
    """row -> score, in rank order."""
    return dict(zip(rows.rows.tolist(), rows.scores.tolist(), strict=True))

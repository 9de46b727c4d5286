"""What another adapter would recommend to a few users, beside what serves: asked for by hand, one at a time.

The other adapter is loaded where a swap would load it, and nothing is swapped meanwhile: memory never exceeds that of
a swap. It searches on the thread of service.dashboard.side_work, which gives way to requests; what serves is asked as
a request asks it. The comparison ends early when the pointer moves, so that a promotion waits for one search at most.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from service.adapters import repository as adapters
from service.audit import repository as audit
from service.catalog.index import CatalogueIndex
from service.dashboard.side_work import Piece, SideWork
from service.errors import Conflict, Unavailable
from service.events import repository as events
from service.generation.batching import Batcher
from service.generation.engine import Generated, GenerationRequest, ServedModel
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend.history import load_past
from service.recommend.ranking import Float64, rank_leaves
from service.settings import Settings
from service.users import repository as users

USERS = 5
LIMIT = 10
AMONG = 2_000  # newest events that users are chosen from
LONGEST_S = 30.0  # then it ends with the users that it has
WAIT_S = 20.0  # of the page that asked


@dataclass(frozen=True, slots=True)
class RankChange:
    """An item's rank in the two lists, from 1; None where it is not in one. At least one is a number."""

    item_id: str
    title: str
    serves: int | None
    other: int | None

    @property
    def kind(self) -> str:
        """kept, moved, new (only the other adapter's) or gone."""
        if self.serves is None:
            return "new"
        if self.other is None:
            return "gone"
        return "kept" if self.serves == self.other else "moved"

    @property
    def moved(self) -> int:
        """Places up (positive) or down."""
        return 0 if self.serves is None or self.other is None else self.serves - self.other


@dataclass(frozen=True, slots=True)
class UserDifference:
    """history: the titles of the user's latest items, newest first. changes: by the other adapter's rank, gone last."""

    user_id: str
    history: tuple[str, ...]
    changes: tuple[RankChange, ...]

    def count(self, kind: str) -> int:
        return sum(change.kind == kind for change in self.changes)


@dataclass(frozen=True, slots=True)
class Difference:
    """serves: the version that answered, None for the base alone. left_out: users without a past that a model reads."""

    at: datetime
    version: str
    serves: str | None
    users: tuple[UserDifference, ...]
    left_out: tuple[str, ...]
    cut_short: bool

    @property
    def shared(self) -> float | None:
        """The mean share of what serves now that the other adapter keeps in its list."""
        lists = [(u, u.count("kept") + u.count("moved")) for u in self.users]
        sizes = [kept / max(1, kept + user.count("gone")) for user, kept in lists]
        return sum(sizes) / len(sizes) if sizes else None


def rank_changes(serves: Sequence[str], other: Sequence[str], titles: Callable[[str], str]) -> tuple[RankChange, ...]:
    """Two lists of distinct item ids, best first."""
    before = {item_id: rank for rank, item_id in enumerate(serves, 1)}
    after = {item_id: rank for rank, item_id in enumerate(other, 1)}
    found = [RankChange(item_id, titles(item_id), before.get(item_id), rank) for item_id, rank in after.items()]
    return (*found, *(RankChange(i, titles(i), rank, None) for i, rank in before.items() if i not in after))


class Comparisons:
    """Safe to share between threads."""

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        clock: Clock,
        index: Callable[[], CatalogueIndex],
        popularity: Callable[[CatalogueIndex], Float64],
        batcher: Batcher,
        beside: Callable[[str], AbstractContextManager[ServedModel]],
        work: SideWork,
    ) -> None:
        """beside: an adapter loaded beside what serves (Activation.beside)."""
        self._database, self._settings, self._clock = database, settings, clock
        self._index, self._popularity, self._batcher = index, popularity, batcher
        self._beside, self._work = beside, work

    def compare(self, version: str, user_ids: Sequence[str], *, actor: str) -> Piece[Difference]:
        """Begin to compare `version` with what serves, for these users or some of late, and wait for it for a while.

        The audit log notes it before it begins, without the users. Raises Unavailable while another comparison runs.
        """

        def run() -> Difference:
            self._note(version, user_ids, actor)
            with self._beside(version) as model:
                return self._compare(model, version, user_ids)

        piece = self._work.ask(_key(version), run, fresh_s=-1, wait_s=WAIT_S, alone="comparison")
        return self._without_erased(version, piece)

    def latest(self, version: str) -> Piece[Difference]:
        """What this process compared last with this version. Raises StoreUnavailable."""
        return self._without_erased(version, self._work.kept(_key(version)))

    def _without_erased(self, version: str, piece: Piece[Difference]) -> Piece[Difference]:
        """A comparison for a user who was erased since is forgotten."""
        difference = piece.value
        if difference is None:
            return piece
        shown = {*(user.user_id for user in difference.users), *difference.left_out}
        with self._database.read() as connection:
            through = users.refused_through(connection, shown)
        if all(moment < difference.at for moment in through.values()):
            return piece
        self._work.forget(_key(version))
        return Piece(None, piece.error, piece.waiting)

    def _note(self, version: str, user_ids: Sequence[str], actor: str) -> None:
        details = {"users": len(user_ids) or USERS, "chosen": "by hand" if user_ids else "of late"}
        with self._database.write() as connection:
            audit.append(
                connection,
                now=self._clock(),
                actor=actor,
                action="adapter.compare",
                subject=version,
                details=details,
            )

    def _compare(self, model: ServedModel, version: str, user_ids: Sequence[str]) -> Difference:
        index, began, at = self._index(), time.monotonic(), self._clock()
        if index.base_id != model.base_id:
            raise Conflict("the catalogue is being encoded for another base; compare again in a moment")
        with self._database.read() as connection:
            pointer = adapters.read_pointer(connection)
            wanted = list(user_ids) or events.latest_users(connection, among=AMONG, limit=4 * USERS)
        found: list[UserDifference] = []
        left_out: list[str] = []
        cut_short = False
        for user_id in wanted:
            if len(found) == USERS:
                break
            with self._database.read() as connection:
                moved = adapters.read_pointer(connection).revision != pointer.revision
            if moved:
                raise Conflict("what serves was changed meanwhile; compare again")
            if time.monotonic() - began > LONGEST_S:
                cut_short = True
                break
            difference = self._of_user(model, index, user_id, pointer.adapter_version)
            if difference is not None:
                found.append(difference)
            elif user_ids:
                left_out.append(user_id)
        return Difference(at, version, pointer.adapter_version, tuple(found), tuple(left_out), cut_short)

    def _of_user(
        self, model: ServedModel, index: CatalogueIndex, user_id: str, serves: str | None
    ) -> UserDifference | None:
        """None for a user whose past no model can read."""
        settings = self._settings
        with self._database.read() as connection:
            past = load_past(
                connection,
                user_id,
                history_items=settings.history_items,
                seen_items=settings.seen_items,
                ignored_types=settings.ignored_event_types,
            )
        prompt = index.with_codes(index.rows(past.latest))[-settings.history_items :]
        if not len(prompt):
            return None
        excluded = index.rows((*past.seen, *past.latest))
        request = GenerationRequest(index.codes[prompt], LIMIT, index.trie.excluded_leaves(excluded))
        asked = self._batcher.ask(request, index.trie, model.base_id, time.monotonic() + LONGEST_S)
        [other] = model.generate([request], index.trie)
        try:
            answer = asked.result(LONGEST_S)
        except TimeoutError:
            raise Unavailable("the model in service is too busy to be compared with; try again later") from None
        if answer.adapter_version != serves:
            raise Conflict("this process does not serve the active adapter yet; compare again in a moment")

        def listed(generated: Generated) -> list[str]:
            ranked = rank_leaves(generated, index.trie, self._popularity(index), excluded, LIMIT)
            return [index.items[row].item_id for row in ranked.rows.tolist()]

        latest = [index.items[row].title for row in prompt.tolist()[::-1]]
        changes = rank_changes(listed(answer.generated), listed(other), lambda i: index.items[index.row_of[i]].title)
        return UserDifference(user_id, tuple(latest), changes)


def _key(version: str) -> tuple[str, str]:
    return ("comparison", version)

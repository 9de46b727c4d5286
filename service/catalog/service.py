"""The catalogue: put, show, hide items, and give them the active base's codes in the same transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.adapters.tables import active_adapter
from service.catalog import repository
from service.catalog.repository import Codes, StoredItem
from service.catalog.schemas import Item, ItemView, PutReport
from service.catalog.semantic_ids import Float32
from service.errors import FieldError, InvalidRequest, NotFound
from service.kit.clock import Clock
from service.kit.db import Database
from service.telemetry import ITEM_WRITES

PIECE = 128
"""Items that a slow text encoder takes at once: some seconds of SmolLM2-135M on two cores."""

INSTANT_PIECE = 5_000
"""The same of TF-IDF, which takes a second or less for them."""

FEW_ITEMS = 500
"""Up to so many (a PUT) the taken codes are looked up by prefix; for more, all are read."""


class Codec(Protocol):
    """A base's frozen tokenizer."""

    @property
    def instant(self) -> bool:
        """Whether a few hundred texts are done before a waiting transaction notices."""
        ...

    def latent(self, texts: Sequence[str]) -> Float32:
        """float32 [n, d], what `place` takes."""
        ...

    def place(self, latent: Float32, taken: Iterable[Codes]) -> list[Codes]:
        """Codes for new items, one for each text, unlike `taken` and each other where there is room.

        Of a text's codes only the last depends on `taken` and on the other texts.
        """
        ...


@dataclass(frozen=True, slots=True)
class ActiveCodec:
    """A codec and the base it belongs to."""

    base_id: str
    codec: Codec


def item_text(title: str, categories: Sequence[str], brand: str | None, description: str | None) -> str:
    """What an item's semantic ID is made from. Bases are fitted on it, so a change needs a new base."""
    parts = (title, ", ".join(categories), brand or "", description or "")
    return ". ".join(part.strip() for part in parts if part.strip())


def _by_id(item: StoredItem) -> str:
    return item.item_id


def _text(item: StoredItem) -> str:
    return item_text(item.title, item.categories, item.brand, item.description)


def put_items(database: Database, clock: Clock, items: Sequence[Item], active: ActiveCodec | None = None) -> PutReport:
    """Create, replace or bring back items in one transaction, and encode those that lack the active base's codes.

    With a text encoder that is not instant they get their codes a moment later, in the background (encode_missing).
    An item keeps its codes when its text changes: the model knows it by them. Any number of items may be given, each
    id once. Raises InvalidRequest when an id occurs twice; then nothing is written.
    """
    _refuse_repeated(items)
    wanted = {item.item_id: item for item in items}
    with database.write() as connection:
        revision = repository.lock_revision(connection)
        stored = repository.by_ids(connection, wanted.keys())
        changed = [item for item in wanted.values() if not _same(item, stored.get(item.item_id))]
        if changed:
            revision = repository.next_revision(connection)
            rows = [item.model_dump() for item in changed]
            there = stored.keys() & {item.item_id for item in changed}
            repository.put_many(connection, rows, now=clock(), revision=revision, there=there)
            # A replica may still hold the previous base's codec: its codes would be wrong under the new one.
            if active is not None and active.codec.instant and active_base_id(connection) == active.base_id:
                now_stored = repository.by_ids(connection, [item.item_id for item in changed])
                _assign_codes(connection, active, sorted(now_stored.values(), key=_by_id), revision)
    report = _report(changed, len(wanted), stored, revision)
    for outcome in ("created", "updated", "unchanged"):
        ITEM_WRITES.labels(outcome).inc(getattr(report, outcome))
    return report


def rehearse_items(database: Database, items: Sequence[Item]) -> PutReport:
    """What put_items would report, at the revision before it; nothing is written. Raises InvalidRequest as it does."""
    _refuse_repeated(items)
    with database.read() as connection:
        revision = repository.current_revision(connection)
        stored = repository.by_ids(connection, [item.item_id for item in items])
    changed = [item for item in items if not _same(item, stored.get(item.item_id))]
    return _report(changed, len(items), stored, revision)


def _report(changed: Sequence[Item], given: int, stored: Mapping[str, StoredItem], revision: int) -> PutReport:
    created = sum(item.item_id not in stored or stored[item.item_id].deleted_at is not None for item in changed)
    updated, unchanged = len(changed) - created, given - len(changed)
    return PutReport(created=created, updated=updated, unchanged=unchanged, catalog_revision=revision)


def _assign_codes(connection: Connection, active: ActiveCodec, stored: Sequence[StoredItem], revision: int) -> None:
    """Encode those of them that lack the base's codes; the others keep theirs."""
    lacking = [item for item in stored if item.base_id != active.base_id]
    if lacking:
        latent = active.codec.latent([_text(item) for item in lacking])
        _set_codes(connection, active, [item.item_id for item in lacking], latent, revision)


def _set_codes(
    connection: Connection, active: ActiveCodec, item_ids: Sequence[str], latent: Float32, revision: int
) -> None:
    # The first three codes do not depend on what is taken, and say what of it can be in the way.
    prefixes = {own[:3] for own in active.codec.place(latent, ())} if len(latent) <= FEW_ITEMS else None
    codes = active.codec.place(latent, repository.taken_codes(connection, active.base_id, prefixes))
    repository.set_codes(connection, active.base_id, dict(zip(item_ids, codes, strict=True)), revision=revision)


def encode_missing(database: Database, active: ActiveCodec) -> int:
    """Encode what lacks codes, unless another base is active by now; returns how many: ask again until there are none.

    Texts are encoded outside of the transaction, so that nobody waits for them, and so many at a time as take seconds.
    """
    with database.read() as connection:
        if active_base_id(connection) != active.base_id:
            return 0
        lacking = repository.without_codes(connection, active.base_id, INSTANT_PIECE if active.codec.instant else PIECE)
    return _encode_piece(database, active, lacking) if lacking else 0


def _encode_piece(database: Database, active: ActiveCodec, lacking: Sequence[StoredItem]) -> int:
    texts = {item.item_id: _text(item) for item in lacking}
    latent = active.codec.latent(list(texts.values()))
    with database.write() as connection:
        repository.lock_revision(connection)
        stored = repository.by_ids(connection, list(texts))
        kept = [
            i
            for i, (item_id, text) in enumerate(texts.items())
            if stored[item_id].base_id != active.base_id and _text(stored[item_id]) == text  # else another was quicker
        ]
        if not kept or active_base_id(connection) != active.base_id:
            return 0
        ids = list(texts)
        _set_codes(connection, active, [ids[i] for i in kept], latent[kept], repository.next_revision(connection))
        return len(kept)


def active_base_id(connection: Connection) -> str | None:
    """The base that the store says is served; None before the first."""
    query = sa.select(active_adapter.c.base_id).where(active_adapter.c.id == 1)
    base_id: str | None = connection.execute(query).scalar_one()
    return base_id


def get_item(database: Database, item_id: str) -> ItemView:
    """Raises NotFound for an unknown or deleted item."""
    with database.read() as connection:
        item = repository.by_ids(connection, [item_id]).get(item_id)
    if item is None or item.deleted_at is not None:
        raise _unknown()
    return ItemView.model_validate(item, from_attributes=True)


def delete_item(database: Database, clock: Clock, item_id: str) -> None:
    """Hide the item from recommendations; training keeps it. Raises NotFound for an unknown or deleted item."""
    with database.write() as connection:
        revision = repository.next_revision(connection)
        if not repository.delete(connection, item_id, now=clock(), revision=revision):
            raise _unknown()


def _unknown() -> NotFound:
    return NotFound("the catalogue has no such item; PUT /v1/items adds it")


def _refuse_repeated(items: Sequence[Item]) -> None:
    first: dict[str, int] = {}
    repeated = [i for i, item in enumerate(items) if first.setdefault(item.item_id, i) != i]
    if repeated:
        errors = [
            FieldError(f"/items/{i}/item_id", "repeated", "this id occurs earlier in the request") for i in repeated
        ]
        raise InvalidRequest("each item may occur once in a request", errors=errors)


def _same(item: Item, stored: StoredItem | None) -> bool:
    return (
        stored is not None
        and stored.deleted_at is None
        and (item.title, item.description, tuple(item.categories), item.brand, item.available)
        == (stored.title, stored.description, stored.categories, stored.brand, stored.available)
    )

"""The catalogue as it was at an earlier revision, from items and item_history."""

import sys
from datetime import datetime

from sqlalchemy.engine import Connection

from service.catalog import repository
from service.catalog.index import CatalogueIndex, IndexedItem
from service.errors import CatalogueError
from service.kit.chunks import Chunks


def index_at(connection: Connection, revision: int, base_id: str | None) -> CatalogueIndex:
    """What a process that followed the catalogue held at `revision`, with the codes of base `base_id`.

    Rows are numbered as by a process that had just started (CatalogueIndex.of), which is as by any other as far as the
    writers' clocks agree. Raises CatalogueError when the store knows no such revision, or no longer.
    """
    now = repository.current_revision(connection)
    since = repository.history_since(connection)
    if revision > now:
        raise CatalogueError(
            f"catalogue revision {revision} is not in this store, which is at {now}: it was restored from an earlier "
            "copy, or is another store"
        )
    if revision < since:
        raise CatalogueError(
            f"what items were at catalogue revision {revision} is no longer kept; {since} is the oldest that is "
            "(ADAPTIDE_RECOMMENDATION_RETENTION, or written before that was kept at all)"
        )
    found: list[tuple[datetime, IndexedItem]] = []
    for row in repository.state_at(connection, revision):
        codes = None
        if row.base_id == base_id and row.code_0 is not None:
            codes = (row.code_0, row.code_1, row.code_2, row.code_3)
        categories = tuple(map(sys.intern, row.categories))
        brand = sys.intern(row.brand) if row.brand else None
        found.append((row.created_at, IndexedItem(row.item_id, row.title, categories, row.servable, codes, brand)))
    found.sort(key=lambda one: (one[0], one[1].item_id))
    return CatalogueIndex(Chunks(item for _, item in found), revision, base_id).load()

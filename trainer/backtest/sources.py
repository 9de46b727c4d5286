"""Files -> blocks: raw items and interactions that are split here, or somebody's ready blocks with semantic IDs."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.catalog.trie import CODES, LEVELS
from service.errors import DatasetError, InvalidRequest
from trainer.backtest.data import BacktestData, Block
from trainer.backtest.splits import Split, chronological, user_disjoint
from trainer.datasets import Dataset, DatasetItem, identifier_of, placed, read_dataset
from trainer.formats import Format, Table, open_table

SEMANTIC_ID_COLUMNS = ("sid_a", "sid_b", "sid_c", "sid_d")
_CODE = re.compile(r"(?:<([a-d])_)?(\d{1,9})(>)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_GENERIC_STEMS = ("items", "interactions", "events", "blocks", "semantic_ids")

Int64 = NDArray[np.int64]


def from_raw(items_path: Path, events_path: Path, **split: Any) -> BacktestData:
    """Items (item_id, title, ..) and interactions (user_id, item_id, timestamp), as trainer.datasets reads them.

    Each is .csv, .csv.gz or .parquet. split: see from_dataset.
    Raises as from_dataset does, and DatasetError naming file, column or line.
    """
    read = read_dataset(name_of(events_path), table_at(items_path), table_at(events_path))
    return from_dataset(read, what=f"{events_path}: item", where=f"in {items_path}", **split)


def from_dataset(
    dataset: Dataset,
    split: str = Split.CHRONOLOGICAL,
    seed: int = 0,
    blocks: int = 5,
    base_share: float = 0.6,
    *,
    what: str = "item",
    where: str = "among the items",
) -> BacktestData:
    """split: a Split or its name; seed: of the user-disjoint partition, nothing else.

    what, where: how an interaction's item, and the place that lacks it, are called when it is missing.
    Raises InvalidRequest for another split, DatasetError for such an item or a split that cannot be made.
    """
    if split not in tuple(Split):
        raise InvalidRequest(f"split {split!r} is not known; choose one of {', '.join(Split)}")
    items, events = tuple(sorted(dataset.items, key=lambda item: item.item_id)), dataset.interactions
    item = _rows_of(events.item_id, items, what, f"{where}; add it there")
    users, user = _numbered(events.user_id)
    user, item, time = _without_duplicates(user, item, events.timestamp)
    notes = _raw_notes(user, time, len(events) - len(user))
    if split == Split.CHRONOLOGICAL:
        block_of = chronological(len(user), blocks, base_share)
    else:
        block_of = user_disjoint(user, blocks, base_share, seed)
        notes.append(f"users were partitioned at random with seed {seed}: blocks overlap in time")
    parts = tuple(Block(user[own], item[own], time[own]) for own in (block_of == t for t in range(blocks)))
    drawn = seed if split == Split.USER_DISJOINT else None
    return _data(dataset.name, f"{split} {drawn}", users, items, parts, None, notes)


def from_blocks(blocks_path: Path, semantic_ids_path: Path) -> BacktestData:
    """Ready blocks (block, user_id, position, item_id) and semantic IDs (item_id, sid_a .. sid_d).

    Blocks are numbered without a gap from 0 or 1; position orders a user's interactions within a block. A code is a
    whole number from 0 to 255 or text as in `<a_51>`. Items without a title are called by their id.
    Raises DatasetError naming file, column or line, an item without a semantic ID, or a gap in the blocks.
    """
    block_table, code_table = table_at(blocks_path), table_at(semantic_ids_path)
    block_table.require("block", "user_id", "position", "item_id")
    code_table.require("item_id", *SEMANTIC_ID_COLUMNS)
    codes_of = _read_codes(code_table)
    items = tuple(DatasetItem(item_id, item_id) for item_id in sorted(codes_of))
    user_id, item_id, number, position = _read_blocks(block_table)
    item = _rows_of(item_id, items, f"{blocks_path}: item", f"among the semantic IDs of {semantic_ids_path}; add its")
    users, user = _numbered(user_id)
    order = np.lexsort((position, user, number))
    user, item, number, position = (column[order] for column in (user, item, number, position))
    again = np.append(False, np.diff(user) == 0) & np.append(False, (np.diff(number) == 0) & (np.diff(position) == 0))
    twice = again & np.append(False, np.diff(item) != 0)
    if twice.any():
        first = int(np.argmax(twice))
        raise DatasetError(
            f"{blocks_path}: user {users[user[first]]!r} has two items at position {position[first]} of block "
            f"{number[first]}, {int(twice.sum())} such places in all; number each user's positions apart"
        )
    user, item, number = user[~again], item[~again], number[~again]
    numbers = np.unique(number)
    _check_numbers(blocks_path, numbers)
    parts = tuple(Block(user[own], item[own], None) for own in (number == n for n in numbers))
    codes = np.array([codes_of[item.item_id] for item in items], dtype=np.int16)
    notes = [*_dropped(int(again.sum())), "no timestamps: popularity counts every earlier interaction alike"]
    if shared := len(items) - len(np.unique(codes, axis=0)):
        notes.append(f"{shared:,} of {len(items):,} items share their semantic ID with another one")
    return _data(name_of(blocks_path), "given", users, items, parts, codes, notes)


def table_at(path: Path) -> Table:
    """A table whose format is read off its name. Raises DatasetError for another ending."""
    if path.name.endswith(".parquet"):
        return open_table(path, Format.PARQUET)
    if path.name.endswith((".csv", ".csv.gz")):
        return open_table(path, Format.CSV)
    raise DatasetError(f"{path} ends in none of .csv, .csv.gz, .parquet; rename or convert it")


def name_of(path: Path) -> str:
    """The file's stem, or its folder's name where the stem says nothing."""
    stem = path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".parquet")
    return path.resolve().parent.name or stem if stem in _GENERIC_STEMS else stem


def _numbered(ids: Iterable[str]) -> tuple[tuple[str, ...], Int64]:
    """The ids in order, and where each given one stands among them."""
    ids = list(ids)
    ordered = tuple(sorted(set(ids)))
    place = {own: i for i, own in enumerate(ordered)}
    return ordered, np.fromiter((place[own] for own in ids), dtype=np.int64, count=len(ids))


def _rows_of(item_ids: Iterable[str], items: tuple[DatasetItem, ...], what: str, where: str) -> Int64:
    row_of = {item.item_id: row for row, item in enumerate(items)}
    item_ids = list(item_ids)
    unknown = [item_id for item_id in item_ids if item_id not in row_of]
    if unknown:
        raise DatasetError(
            f"{what} {unknown[0]!r} is not {where} or drop its interactions ({len(set(unknown)):,} such items in "
            f"{len(unknown):,} of {len(item_ids):,} interactions)"
        )
    return np.fromiter((row_of[item_id] for item_id in item_ids), dtype=np.int64, count=len(item_ids))


def _without_duplicates(
    user: Int64, item: Int64, time: NDArray[np.float64]
) -> tuple[Int64, Int64, NDArray[np.float64]]:
    """The first of each (user, item, timestamp), in the given order."""
    order = np.lexsort((np.arange(len(user)), time, item, user))
    same = (np.diff(user[order]) == 0) & (np.diff(item[order]) == 0) & (np.diff(time[order]) == 0)
    kept = np.sort(order[np.append(True, ~same)])
    return user[kept], item[kept], time[kept]


def _raw_notes(user: Int64, time: NDArray[np.float64], dropped: int) -> list[str]:
    notes = _dropped(dropped)
    own = np.lexsort((time, user))
    ties = int(((np.diff(user[own]) == 0) & (np.diff(time[own]) == 0)).sum())
    if ties:
        notes.append(
            f"{ties:,} of {len(user):,} interactions have the time of the same user's previous one: "
            "ties are broken by row order"
        )
    return notes


def _dropped(rows: int) -> list[str]:
    if not rows:
        return []
    return [f"{rows:,} exact duplicate{' of an interaction was' if rows == 1 else 's of interactions were'} dropped"]


def _read_blocks(table: Table) -> tuple[list[str], list[str], Int64, Int64]:
    users: list[str] = []
    items: list[str] = []
    numbers: list[int] = []
    positions: list[int] = []
    for row in table.rows():
        with placed(table, row):
            users.append(identifier_of(row.values, "user_id"))
            items.append(identifier_of(row.values, "item_id"))
            numbers.append(_whole(row.values, "block"))
            positions.append(_whole(row.values, "position"))
            if numbers[-1] < 0:
                raise ValueError(f"block {numbers[-1]} is negative; number the blocks from 0 or 1")
    if not users:
        raise DatasetError(f"{table.path} has a header but no interactions")
    return users, items, np.array(numbers, dtype=np.int64), np.array(positions, dtype=np.int64)


def _read_codes(table: Table) -> dict[str, list[int]]:
    codes: dict[str, list[int]] = {}
    for row in table.rows():
        with placed(table, row):
            item_id = identifier_of(row.values, "item_id")
            if item_id in codes:
                raise ValueError(f"item_id {item_id!r} has a semantic ID already; keep one of them")
            codes[item_id] = [_code(row.values, level) for level in range(LEVELS)]
    if not codes:
        raise DatasetError(f"{table.path} has a header but no semantic IDs")
    return codes


def _whole(values: Mapping[str, Any], column: str) -> int:
    value = values[column]
    if isinstance(value, bool):
        value = None
    if _WHOLE.fullmatch(str(value).strip()):
        return int(value)
    raise ValueError(f"{column} {str(values[column])[:40]!r} is no whole number")


def _code(values: Mapping[str, Any], level: int) -> int:
    column = SEMANTIC_ID_COLUMNS[level]
    text = str(values[column]).strip()
    found = _CODE.fullmatch(text)
    letter = column[-1]
    if not found or (found[1] is None) != (found[3] is None) or found[1] not in (None, letter):
        raise ValueError(f"{column} {text[:40]!r} is no code; write 51 or <{letter}_51>")
    if int(found[2]) >= CODES:
        raise ValueError(f"{column} {text[:40]!r} is out of range; codes go from 0 to {CODES - 1}")
    return int(found[2])


def _check_numbers(path: Path, numbers: Int64) -> None:
    """numbers: the blocks that have interactions, rising."""
    gaps = np.flatnonzero(np.diff(numbers) > 1)
    if numbers[0] > 1 or len(gaps):
        missing = 0 if numbers[0] > 1 else numbers[gaps[0]] + 1
        raise DatasetError(f"{path} has no block {missing} but later ones; number the blocks without a gap from 0 or 1")
    if len(numbers) < 2:
        raise DatasetError(f"{path} has one block; at least two are needed, D_1 for the base and one to adapt to")


def _data(
    name: str,
    split: str,
    users: tuple[str, ...],
    items: tuple[DatasetItem, ...],
    blocks: tuple[Block, ...],
    codes: NDArray[np.int16] | None,
    notes: list[str],
) -> BacktestData:
    """The digest is over contents, not files: the same rows as CSV and as Parquet are the same data."""
    known = [(i.item_id, i.title, i.description, i.categories, i.brand) for i in items]
    digest = hashlib.sha256(orjson.dumps([split, users, known, [len(block) for block in blocks]]))
    arrays = [a for block in blocks for a in (block.user, block.item, block.timestamp)] + [codes]
    for array in arrays:
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return BacktestData(name, digest.hexdigest(), users, items, blocks, codes, tuple(notes))

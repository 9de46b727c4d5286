"""Raw interactions and ready blocks from files of a few rows."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from service.errors import DatasetError, InvalidRequest
from trainer.backtest.data import BacktestData
from trainer.backtest.sources import from_blocks, from_dataset, from_raw, name_of
from trainer.backtest.splits import Split
from trainer.datasets import load_dataset

ITEMS = "item_id,title,brand\nb,Blue,\na,Red,Rouge\nnever,Green,\n"
EVENTS = "user_id,item_id,timestamp\nu2,b,30\nu1,a,10\nu1,b,20\nu2,a,40\nu2,b,50\n"
BLOCKS = "block,user_id,position,item_id\n0,u1,1,b\n0,u1,0,a\n1,u2,0,b\n1,u2,1,a\n"
CODES = "item_id,sid_a,sid_b,sid_c,sid_d\nb,<a_51>,<b_2>,<c_3>,<d_4>\na,0,255,3,4\n"


def raw(folder: Path, events: str = EVENTS, items: str = ITEMS, **options: object) -> BacktestData:
    (folder / "items.csv").write_text(items)
    (folder / "interactions.csv").write_text(events)
    return from_raw(folder / "items.csv", folder / "interactions.csv", **{"blocks": 2, **options})  # type: ignore[arg-type]


def ready(folder: Path, blocks: str = BLOCKS, codes: str = CODES) -> BacktestData:
    (folder / "blocks.csv").write_text(blocks)
    (folder / "semantic_ids.csv").write_text(codes)
    return from_blocks(folder / "blocks.csv", folder / "semantic_ids.csv")


def pairs(data: BacktestData) -> list[list[tuple[str, str]]]:
    """Per block the (user, item) pairs in order."""
    return [[(data.users[u], data.items[i].item_id) for u, i in zip(b.user, b.item, strict=True)] for b in data.blocks]


def test_raw_interactions_are_sorted_by_time_and_cut(tmp_path: Path) -> None:
    assert pairs(raw(tmp_path)) == [[("u1", "a"), ("u1", "b"), ("u2", "b")], [("u2", "a"), ("u2", "b")]]


def test_items_are_in_order_of_their_id_and_those_without_interactions_stay(tmp_path: Path) -> None:
    data = raw(tmp_path)
    assert [(item.item_id, item.title, item.brand) for item in data.items] == [
        ("a", "Red", "Rouge"),
        ("b", "Blue", None),
        ("never", "Green", None),
    ]
    assert data.codes is None


def test_a_data_set_is_the_same_data_as_its_files(tmp_path: Path) -> None:
    files = raw(tmp_path)
    found = from_dataset(load_dataset(str(tmp_path), tmp_path), blocks=2)
    assert (found.digest, pairs(found)) == (files.digest, pairs(files))
    (tmp_path / "items.csv").write_text("item_id,title\nb,Blue\n")
    with pytest.raises(DatasetError, match="item 'a' is not among the items; add it there"):
        from_dataset(load_dataset(str(tmp_path), tmp_path), blocks=2)


def test_ties_in_time_stay_in_row_order_and_are_noted(tmp_path: Path) -> None:
    data = raw(tmp_path, "user_id,item_id,timestamp\nu,b,5\nu,a,5\nv,a,1\nv,b,2\n")
    assert pairs(data) == [[("v", "a"), ("v", "b")], [("u", "b"), ("u", "a")]]
    assert data.notes == (
        "1 of 4 interactions have the time of the same user's previous one: ties are broken by row order",
    )


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    data = raw(tmp_path, EVENTS + "u1,a,10\nu1,a,10\nu1,a,11\n")
    assert sum(len(block) for block in data.blocks) == 6
    assert data.notes == ("2 exact duplicates of interactions were dropped",)


def test_an_interactions_item_that_is_not_among_the_items_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        raw(tmp_path, EVENTS + "u1,lost,5\nu1,gone,60\nu2,lost,70\n")
    assert "item 'lost' is not in" in caught.value.detail
    assert "add it there or drop its interactions (2 such items in 3 of 8 interactions)" in caught.value.detail


def test_users_are_kept_apart_when_asked_and_the_seed_is_noted(tmp_path: Path) -> None:
    data = raw(tmp_path, split=Split.USER_DISJOINT, seed=3)
    first, second = ({user for user, _ in block} for block in pairs(data))
    assert not first & second
    assert data.notes == ("users were partitioned at random with seed 3: blocks overlap in time",)


def test_a_split_may_be_named_by_its_text_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    assert pairs(raw(tmp_path, split="chronological")) == pairs(raw(tmp_path))
    with pytest.raises(InvalidRequest, match="choose one of chronological, user-disjoint"):
        raw(tmp_path, split="random")


def test_the_digest_tells_data_and_splits_apart_and_nothing_else(tmp_path: Path) -> None:
    plain = raw(tmp_path).digest
    zipped = tmp_path / "interactions.csv.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "interactions.csv").read_bytes()))
    assert from_raw(tmp_path / "items.csv", zipped, blocks=2).digest == plain
    assert raw(tmp_path, seed=5).digest == plain  # no chance in a chronological split
    others = [
        raw(tmp_path, blocks=3),
        raw(tmp_path, split=Split.USER_DISJOINT, seed=0),
        raw(tmp_path, split=Split.USER_DISJOINT, seed=1),
        raw(tmp_path, EVENTS.replace("u1,a,10", "u1,a,11")),
        raw(tmp_path, items=ITEMS.replace("Red", "Rose")),
    ]
    assert len({plain, *(other.digest for other in others)}) == 6


def test_files_are_told_apart_by_their_ending(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text(ITEMS)
    with pytest.raises(DatasetError, match=r"items\.txt ends in none of \.csv, \.csv\.gz, \.parquet"):
        from_raw(tmp_path / "items.txt", tmp_path / "interactions.csv")


@pytest.mark.parametrize("header", ["", "user_id,item_id,timestamp\n"])
def test_a_file_without_interactions_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(DatasetError, match=r"interactions\.csv (is empty|has a header but no interactions)"):
        raw(tmp_path, header)


def test_a_backtest_is_called_by_its_file_or_else_its_folder(tmp_path: Path) -> None:
    assert name_of(tmp_path / "beauty.csv.gz") == "beauty"
    assert name_of(tmp_path / "interactions.parquet") == tmp_path.name


def test_ready_blocks_come_in_order_of_position_with_their_codes(tmp_path: Path) -> None:
    data = ready(tmp_path)
    assert pairs(data) == [[("u1", "a"), ("u1", "b")], [("u2", "b"), ("u2", "a")]]
    assert data.codes is not None
    assert data.codes.dtype == np.int16
    assert data.codes.tolist() == [[0, 255, 3, 4], [51, 2, 3, 4]]
    assert all(block.timestamp is None for block in data.blocks)
    assert data.items[0].title == "a"
    assert data.notes == ("no timestamps: popularity counts every earlier interaction alike",)


def test_ready_blocks_may_be_parquet_with_whole_number_ids(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    blocks = {"block": [1, 1, 2], "user_id": [7, 7, 7], "position": [0, 1, 0], "item_id": [10, 9, 10]}
    codes = {"item_id": [9, 10], **{f"sid_{letter}": [f"<{letter}_1>", f"<{letter}_2>"] for letter in "abcd"}}
    polars.DataFrame(blocks).write_parquet(tmp_path / "blocks.parquet")
    polars.DataFrame(codes).write_parquet(tmp_path / "semantic_ids.parquet")
    data = from_blocks(tmp_path / "blocks.parquet", tmp_path / "semantic_ids.parquet")
    assert pairs(data) == [[("7", "10"), ("7", "9")], [("7", "10")]]
    assert data.codes is not None
    assert data.codes.tolist() == [[2] * 4, [1] * 4]


def test_items_that_share_a_semantic_id_are_noted(tmp_path: Path) -> None:
    data = ready(tmp_path, codes=CODES + "c,0,255,3,4\n")
    assert data.notes[-1] == "1 of 3 items share their semantic ID with another one"


def test_a_row_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    data = ready(tmp_path, BLOCKS + "0,u1,1,b\n")
    assert len(data.blocks[0]) == 2
    assert data.notes[0] == "1 exact duplicate of an interaction was dropped"


@pytest.mark.parametrize(
    ("blocks", "codes", "what"),
    [
        (BLOCKS + "1,u2,2,lost\n", CODES, r"item 'lost' is not among the semantic IDs .*1 such items in 1 of 5"),
        (BLOCKS + "1,u2,0,a\n", CODES, r"user 'u2' has two items at position 0 of block 1, 1 such places"),
        (BLOCKS + "-1,u2,0,a\n", CODES, r"line 6: block -1 is negative"),
        (BLOCKS + "3,u2,0,a\n", CODES, r"has no block 2 but later ones"),
        (BLOCKS + "900000000000,u2,0,a\n", CODES, r"has no block 2 but later ones"),
        (BLOCKS.replace("\n0,", "\n2,").replace("\n1,", "\n3,"), CODES, r"has no block 0 but later ones"),
        (BLOCKS.replace("\n1,", "\n0,"), CODES, r"has one block; at least two"),
        (BLOCKS + "one,u2,0,a\n", CODES, r"line 6: block 'one' is no whole number"),
        (BLOCKS + "1,u2,1.5,a\n", CODES, r"line 6: position '1\.5' is no whole number"),
        (BLOCKS, CODES.replace("255", "256"), r"line 3: sid_b '256' is out of range; codes go from 0 to 255"),
        (BLOCKS, CODES.replace("<b_2>", "<a_2>"), r"sid_b '<a_2>' is no code; write 51 or <b_51>"),
        (BLOCKS, CODES.replace("<b_2>", "<b_2"), r"sid_b '<b_2' is no code"),
        (BLOCKS, CODES.replace("<b_2>", "2>"), r"sid_b '2>' is no code"),
        (BLOCKS, CODES.replace("255", "-1"), r"sid_b '-1' is no code"),
        (BLOCKS, CODES + "a,1,1,1,1\n", r"line 4: item_id 'a' has a semantic ID already"),
        (BLOCKS, CODES.partition("\n")[0] + "\n", r"semantic_ids\.csv has a header but no semantic IDs"),
        (BLOCKS.partition("\n")[0] + "\n", CODES, r"blocks\.csv has a header but no interactions"),
        (BLOCKS.replace("position", "place"), CODES, r"has no column position"),
    ],
)
def test_ready_blocks_that_cannot_be_meant_are_refused_with_their_place(
    tmp_path: Path, blocks: str, codes: str, what: str
) -> None:
    with pytest.raises(DatasetError, match=what):
        ready(tmp_path, blocks, codes)

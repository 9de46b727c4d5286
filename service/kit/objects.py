"""Objects below a URL: read within a limit, written whole, listed, deleted. Errors say what failed, never a secret.

s3://, gs:// and az:// are opened by obstore (the extra `s3`), any other scheme by the file system that fsspec knows
for it. Credentials and endpoints come from the environment (AWS_*, GOOGLE_*, AZURE_*).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.errors import ConfigurationError, ObjectMissing, ObjectsAway, ObjectsError

CHUNK = 2**20
BUCKETS = {"s3", "gs", "az"}
"""Schemes whose first part is a bucket."""
_CONNECT_S = 5
_RETRIES = 2
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9]{1,60})\s*</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AllAccessDisabled"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge"}
_FROM_OUTSIDE = "use the environment for credentials and endpoints (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its name below the folder, and its bytes."""

    name: str
    size: int


def check_url(url: str) -> None:
    """Raises ConfigurationError for a URL that names no place, or that carries credentials (which it does not show)."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(f"a URL of objects is SCHEME://BUCKET/PREFIX and nothing else; {_FROM_OUTSIDE}")
    if parts.scheme in BUCKETS and not parts.netloc:
        raise ConfigurationError(f"{parts.scheme}:// names no bucket; write {parts.scheme}://BUCKET/PREFIX")


class ObjectFolder:
    """The objects below one URL. Safe to share between threads; each request ends within about `timeout`.

    Every method raises ObjectsError saying what could not be done, ObjectMissing when an object is not there,
    ObjectsAway when the place is to blame. The time limit is kept for s3, gs and az; other file systems have limits of
    their own.
    """

    def __init__(self, url: str, timeout: timedelta) -> None:
        """Connects to nothing. Raises ConfigurationError for an unknown scheme or a missing package."""
        check_url(url)
        self.url = url.rstrip("/")
        self._scheme = urlsplit(url).scheme
        self._files = _file_system(self._scheme, timeout)
        bucketed = self._scheme in BUCKETS
        self._root = self.url.partition("://")[2] if bucketed else self._files._strip_protocol(self.url).rstrip("/")

    @property
    def place(self) -> str:
        """The bucket, or the whole URL where there are none: for messages."""
        return f"bucket {urlsplit(self.url).netloc}" if self._scheme in BUCKETS else self.url

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of an object of at most `limit` bytes; a larger one is not fetched."""
        with self._doing("read", name):
            size = self._size(name)
            if size > limit:
                raise ObjectsError(f"{name} in {self.place} is {size} bytes, more than the {limit} that are read")
            data = b"".join(self._stream(name, size))  # not cat_file: what lies there now may be larger
        if len(data) != size:
            raise ObjectsError(f"{name} in {self.place} changed while it was read")
        return data

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of an object of exactly `size` bytes. One of another size is not fetched, nor a byte beyond it."""
        with self._doing("read", name):
            found = self._size(name)
            if found != size:
                raise ObjectsError(f"{name} in {self.place} is {found} bytes, not {size}")
            left = size
            for piece in self._stream(name, size):
                left -= len(piece)
                yield piece
            if left:
                raise ObjectsError(f"{name} in {self.place} ended {left} bytes too early")

    def put_file(self, name: str, source: Path) -> None:
        """Write one object; on s3, gs and az it appears whole or not at all. Its former content is replaced."""
        with self._doing("write", name):
            if self._scheme not in BUCKETS:
                self._files.makedirs(self._parent(name), exist_ok=True)
            self._files.put_file(str(source), self._path(name))

    def put(self, name: str, data: bytes) -> None:
        """As put_file."""
        with self._doing("write", name):
            if self._scheme not in BUCKETS:
                self._files.makedirs(self._parent(name), exist_ok=True)
            self._files.pipe_file(self._path(name), data)

    def names(self, folder: str) -> list[str]:
        """What lies directly below `folder`, sorted; empty when nothing does."""
        with self._doing("list", folder):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in found})

    def entries(self, folder: str, most: int) -> list[Entry]:
        """Every object below `folder`. Raises ObjectsError when they are more than `most`."""
        with self._doing("list", folder):
            self._files.invalidate_cache()
            prefix = self._path(folder).rstrip("/") + "/"
            found = self._files.find(prefix, detail=True)
        if len(found) > most:
            raise ObjectsError(f"{folder} in {self.place} holds more than {most} objects")
        return sorted(
            (Entry(path.removeprefix(prefix), int(info["size"])) for path, info in found.items()),
            key=lambda entry: entry.name,
        )

    def modified(self, name: str) -> datetime:
        """When an object was written last."""
        with self._doing("read", name):
            when: datetime = self._files.modified(self._path(name))
            return when if when.tzinfo else when.replace(tzinfo=UTC)

    def delete(self, name: str) -> None:
        """Delete an object; one that is not there is deleted already."""
        with self._doing("delete", name):
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                pass

    def check(self, *, write: bool = False) -> None:
        """Raises ObjectsError unless the place can be listed, and with `write` written to."""
        self.names("")
        if write:
            probe = f".write-check-{os.getpid()}"
            self.put(probe, b"written to find out whether it can be; may be deleted\n")
            self.delete(probe)

    def _stream(self, name: str, size: int) -> Iterator[bytes]:
        """What an object begins with, `size` bytes at most."""
        left = size
        if not left:
            return
        with self._files.open(self._path(name), "rb", size=size) as source:
            while left and (piece := source.read(min(CHUNK, left))):
                left -= len(piece)
                yield piece

    def _size(self, name: str) -> int:
        info = self._files.info(self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(name)
        return int(info["size"])

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _parent(self, name: str) -> str:
        return self._path(name).rpartition("/")[0]

    @contextmanager
    def _doing(self, verb: str, name: str) -> Iterator[None]:
        """Say what failed and why; the cause may quote a request or its keys, so it is not chained and not quoted."""
        try:
            yield
        except ObjectsError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise ObjectsError(self._no_bucket()) from None
            raise ObjectMissing(f"{name or 'it'} is not in {self.place}") from None
        except Exception as error:  # each file system has errors of its own
            raise ObjectsAway(f"{name or self.place} could not be {_PAST[verb]}: {self._why(error)}") from None

    def _no_bucket(self) -> str:
        return f"{self.place} does not exist; create it, or correct the URL"

    def _why(self, error: Exception) -> str:
        text, kind = str(error), type(error).__name__
        code = found[1] if (found := _CODE.search(text)) else None
        status = found[1] if (found := _STATUS.search(text)) else None
        if code == "NoSuchBucket":
            return self._no_bucket()
        if "169.254.169.254" in text or "metadata.google" in text or kind in ("NoCredentialsError", "Unauthenticated"):
            return "no credentials were found in the environment"
        if code in _FULL or status == "507":
            return f"{self.place} is full or its quota is reached ({code or status})"
        denied = isinstance(error, PermissionError) or kind in ("PermissionDeniedError", "UnauthenticatedError")
        if denied or code in _DENIED or status in ("401", "403"):
            return f"{self.place} refuses these credentials ({code or status or 'no right'})"
        if code or status:
            return f"{self.place} answered with {code or status}"
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if "error sending request" in text or "timed out" in text or "timeout" in text.lower():
            return f"{self.place} cannot be reached or does not answer"
        return f"{self.place} gave no answer that can be used ({kind})"


_PAST = {"read": "read", "write": "written", "list": "listed", "delete": "deleted"}


def _file_system(scheme: str, timeout: timedelta) -> Any:
    if scheme in BUCKETS:
        return _buckets(scheme, timeout)
    try:
        fsspec = import_module("fsspec")
    except ModuleNotFoundError:
        raise ConfigurationError(f"{scheme}:// needs fsspec: pip install fsspec") from None
    try:
        return fsspec.get_filesystem_class(scheme)(skip_instance_cache=True)
    except ValueError:
        raise ConfigurationError(
            f"{scheme}:// is no scheme that is known; use a folder, s3://, gs://, az:// or another of fsspec's"
        ) from None
    except ImportError as error:
        raise ConfigurationError(f"{scheme}:// needs another package: {error}") from None
    except Exception as error:  # such as a host that the URL does not name
        raise ConfigurationError(f"{scheme}:// cannot be opened here ({type(error).__name__})") from None


def _buckets(scheme: str, timeout: timedelta) -> Any:
    try:
        opener = import_module("obstore.fsspec").FsspecStore
    except ModuleNotFoundError:
        raise ConfigurationError(f"{scheme}:// needs the package obstore: pip install 'adaptide[s3]'") from None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    options: dict[str, Any] = {}
    if scheme == "s3":
        options["disable_bulk_delete"] = True  # which not every server has
        if endpoint:
            options["endpoint"] = endpoint
    return opener(
        scheme,
        skip_instance_cache=True,
        client_options={
            "timeout": timeout,
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "allow_http": endpoint.startswith("http://"),  # whoever writes http:// means it
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": timeout},
        **options,
    )

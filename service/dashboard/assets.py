"""The dashboard's own and vendored files, held in memory under names that change with their contents."""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from starlette.responses import Response

from service.errors import NotFound

AT = "/dashboard/static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".LICENSE": "text/plain"}
_FOREVER = "public, max-age=31536000, immutable"  # of a name that carries its digest
_ASKED_ANEW = "public, no-cache"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. hashed: its name with a part of its digest, as `dashboard.0a1b2c3d4e5f.css`."""

    name: str
    hashed: str
    body: bytes
    packed: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> "Asset":
        digest, path = hashlib.sha256(body).hexdigest(), PurePosixPath(name)
        hashed = str(path.with_suffix(f".{digest[:12]}{path.suffix}"))
        return cls(name, hashed, body, gzip.compress(body, mtime=0), _TYPES[path.suffix], f'"{digest[:32]}"')


def _read(folder: Traversable, prefix: str = "") -> list[Asset]:
    found: list[Asset] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif PurePosixPath(entry.name).suffix in _TYPES:
            found.append(Asset.of(prefix + entry.name, entry.read_bytes()))
    return found


ASSETS = {asset.name: asset for asset in _read(files("service.dashboard").joinpath("static"))}
_BY_ADDRESS = {asset.hashed: asset for asset in ASSETS.values()} | ASSETS


def static_url(name: str) -> str:
    """Where a browser finds the file `name`, for as long as its contents stay."""
    return f"{AT}/{ASSETS[name].hashed}"


def reply(address: str, *, accepts: str = "", held: str = "") -> Response:
    """The file at `address`, its name or hashed name. accepts, held: Accept-Encoding and If-None-Match as they came.

    Raises NotFound.
    """
    asset = _BY_ADDRESS.get(address)
    if asset is None:
        raise NotFound("there is no such file; load the page again")
    caching = _FOREVER if address == asset.hashed else _ASKED_ANEW
    headers = {"ETag": asset.etag, "Cache-Control": caching, "Vary": "Accept-Encoding"}
    if asset.etag in held:
        return Response(status_code=304, headers=headers)
    if "gzip" in accepts:
        return Response(asset.packed, media_type=asset.media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(asset.body, media_type=asset.media_type, headers=headers)

"""What one machine cannot read says nothing about an adapter: it is not marked, what serves goes on, and it is tried
again. Real causes: no descriptor left, no right to read, a disk that answers with an error."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from service.adapters import integrity, manifest, service
from service.adapters.artifacts import ADAPTERS, ArtifactStore
from service.adapters.manifest import MANIFEST
from service.adapters.moves import MoveRequest
from service.adapters.signatures import SIGNATURE, Keys
from service.adapters.states import AdapterState
from service.audit import repository as audit
from service.errors import ArtifactError, ArtifactUnreachable, Conflict
from tests.adapters.tiny import Shelf
from tests.rights import linux, locked

ADMIN = MoveRequest("key:admin")
PROCESS = """
import itertools, os, resource, sys
from datetime import timedelta
from pathlib import Path
import orjson
from service.adapters import integrity, service
from service.adapters.activation import FIRST_RETRY_S, Activation
from service.adapters.artifacts import ArtifactStore
from service.adapters.moves import MoveRequest
from service.errors import Conflict
from service.kit.clock import utc_now
from service.kit.db import Database
from tests.adapters.engines import SumEngine

url, root, version = sys.argv[1:]
database, artifacts, seconds, told = Database(url), ArtifactStore(Path(root)), [0.0], []

def tell(status):
    told.append([status.adapter_version, status.wanted_version, status.degraded])

activation = Activation(
    database, utc_now, artifacts, SumEngine(), timedelta(1), monotonic=lambda: seconds[0]
)
activation.refresh()
service.promote(database, utc_now, artifacts, version, MoveRequest("test"))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
tell(activation.refresh())
try:
    integrity.verify(database, utc_now, artifacts, version, actor="test")
except Conflict as error:
    told.append(error.detail)
for descriptor in taken:
    os.close(descriptor)
seconds[0] += FIRST_RETRY_S
tell(activation.refresh())
sys.stdout.buffer.write(orjson.dumps(told))
"""


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 512), before[1]))
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def serving(shelf: Shelf) -> str:
    version = shelf.adapter(shelf.active_base(), 0.1)
    service.promote(shelf.database, shelf.clock, shelf.artifacts, version, ADMIN)
    return version


def state(shelf: Shelf, version: str) -> AdapterState:
    return service.read_adapter(shelf.database, version).adapter.state


def marked(shelf: Shelf) -> list[str]:
    with shelf.database.read() as connection:
        found = audit.page(connection, limit=50, before=None)
    return [entry["subject"] for entry in found if entry["action"] == "adapter.corrupt"]


def verify(shelf: Shelf, version: str) -> None:
    integrity.verify(shelf.database, shelf.clock, shelf.artifacts, version, actor="test")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_replica_out_of_descriptors_keeps_what_serves_marks_nothing_and_tries_again(
    shelf: Shelf, database_url: str
) -> None:
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    shelf.database.close()
    command = [sys.executable, "-c", PROCESS, database_url, str(shelf.artifacts.root), version]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    starved, verified, later = orjson.loads(done.stdout.splitlines()[-1])  # behind the log
    assert starved[:2] == [None, version]  # the base goes on
    assert "Too many open files" in starved[2]
    assert "ulimit -n" in starved[2]
    assert "Too many open files" in verified
    assert later == [version, version, None]
    assert (state(shelf, version), marked(shelf)) == (AdapterState.ACTIVE, [])


@linux
def test_verifying_what_this_user_may_not_read_says_so_and_marks_nothing(shelf: Shelf) -> None:
    version = serving(shelf)
    folder = shelf.weights_of(version).parent
    for path in (shelf.weights_of(version), folder / MANIFEST, folder, folder.parent):
        with locked(path), pytest.raises(Conflict, match="Permission denied; give this user the right to read it"):
            verify(shelf, version)
    assert (state(shelf, version), marked(shelf)) == (AdapterState.ACTIVE, [])
    verify(shelf, version)


@linux
def test_a_signature_that_cannot_be_read_is_not_a_signature_that_is_missing(shelf: Shelf) -> None:
    shelf.artifacts = ArtifactStore(shelf.artifacts.root, keys=Keys("a key to sign with, long enough"))
    version = serving(shelf)
    adapter = service.read_adapter(shelf.database, version).adapter
    base = shelf.artifacts.open_base(*_base(shelf, adapter.base_id))
    with locked(shelf.weights_of(version).parent / SIGNATURE), pytest.raises(ArtifactUnreachable):
        shelf.artifacts.open_adapter(version, adapter.digest, base)


def _base(shelf: Shelf, base_id: str) -> tuple[str, str]:
    with shelf.database.read() as connection:
        base = integrity.require_base(connection, base_id)
    return base.base_id, base.digest


@linux
def test_a_disk_that_fails_while_it_is_read_is_no_damage(tmp_path: Path) -> None:
    broken = Path("/proc/self/mem")  # a plain file that opens, and whose first byte is an input/output error
    with pytest.raises(ArtifactUnreachable, match="Input/output error; see to its disk"):
        manifest.hash_plain(broken)
    with pytest.raises(ArtifactUnreachable):
        manifest.copy_plain(broken, tmp_path / "copy")


@linux
def test_what_is_removed_or_listed_without_the_right_to_is_out_of_reach(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    with locked(shelf.artifacts.root / ADAPTERS):
        with pytest.raises(ArtifactUnreachable, match="Permission denied"):
            shelf.artifacts.names(ADAPTERS)
        with pytest.raises(ArtifactUnreachable, match="Permission denied"):
            shelf.artifacts.remove(ADAPTERS, version)
    assert shelf.artifacts.names(ADAPTERS) == [version]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("trap", ["link", "file", "long"])
def test_what_a_folder_itself_causes_is_still_its_fault(shelf: Shelf, trap: str) -> None:
    version = serving(shelf)
    folder = shelf.weights_of(version).parent
    manifest_file = folder / MANIFEST
    if trap == "link":
        manifest_file.rename(folder / "elsewhere")
        manifest_file.symlink_to("elsewhere")
    elif trap == "file":
        folder.rename(folder.parent / "aside")
        folder.write_text("no folder")
    else:
        shelf.weights_of(version).write_bytes(b"")
        with pytest.raises(ArtifactError) as raised:
            manifest.read_plain(folder / ("x" * 300), 1)
        assert type(raised.value) is ArtifactError
    with pytest.raises(Conflict):
        verify(shelf, version)
    assert (state(shelf, version), marked(shelf)) == (AdapterState.CORRUPT, [version])


def test_no_descriptor_for_a_listing_is_out_of_reach_too(tmp_path: Path) -> None:
    with no_descriptor_left(), pytest.raises(ArtifactUnreachable, match="Too many open files"):
        manifest.list_files(tmp_path)

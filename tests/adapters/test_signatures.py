"""With a key set, what nobody signed with it is not loaded, wherever it lies; without one nothing is asked."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from typer.testing import CliRunner

from service.adapters import integrity, service
from service.adapters.activation import Activation
from service.adapters.artifact_commands import app
from service.adapters.artifacts import ADAPTERS, BASES, ArtifactStore
from service.adapters.moves import MoveRequest
from service.adapters.signatures import SIGNATURE, Keys
from service.adapters.states import AdapterState
from service.audit.service import read_page
from service.errors import AdaptideError, ArtifactUntrusted, ConfigurationError, Conflict
from service.kit.db import Database
from service.settings import load_settings
from tests.adapters.engines import SumEngine
from tests.adapters.tiny import Shelf, adapter_folder, adapter_tensors, base_folder
from tests.conftest import SetClock

OLD, NEW = "o" * 40, "n" * 40
ADMIN = MoveRequest("key:admin")


def signed_by(folder: Path, *keys: str) -> ArtifactStore:
    return ArtifactStore(folder / "artifacts", keys=Keys(*keys[:1], keys[1:]))


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Any]:
    """A base and an adapter, signed with OLD; what it takes to open them."""
    store = signed_by(tmp_path, OLD)
    base = store.publish_base(base_folder(tmp_path / "base"), {})
    adapter = store.publish_adapter(adapter_folder(tmp_path / "adapter"), {"base_id": base.id}, 7)
    return {"base": base, "adapter": adapter}


def open_both(store: ArtifactStore, published: dict[str, Any]) -> None:
    base = store.open_base(published["base"].id, published["base"].digest)
    store.open_adapter(published["adapter"].id, published["adapter"].digest, base)


def test_what_is_published_with_a_key_opens_with_it_and_without_any(tmp_path: Path, published: dict[str, Any]) -> None:
    open_both(signed_by(tmp_path, OLD), published)
    open_both(signed_by(tmp_path), published)
    document = orjson.loads((published["adapter"].path / SIGNATURE).read_bytes())
    assert set(document) == {"format", "hmac_sha256", "key"}


def test_a_signature_is_the_same_in_every_version() -> None:
    """What is signed stays signed; both from `openssl dgst -sha256 -hmac KEY`, of "adaptide manifest 1\\n{}" and of
    "adaptide key id 1\\n"."""
    mac = b"9137a6f035f25e9fe5baa87fb210dc881bf1658bed831936fa577ce08b264b96"
    assert Keys("k" * 32).sign(b"{}") == b'{"format":1,"hmac_sha256":"' + mac + b'","key":"9b606239"}'


def test_without_a_key_nothing_is_signed(tmp_path: Path) -> None:
    made = signed_by(tmp_path).publish_base(base_folder(tmp_path / "base"), {})
    assert not (made.path / SIGNATURE).exists()


def test_another_key_is_refused_until_it_is_accepted(tmp_path: Path, published: dict[str, Any]) -> None:
    with pytest.raises(ArtifactUntrusted, match="ADAPTIDE_SIGNING_KEYS_ACCEPTED") as refused:
        open_both(signed_by(tmp_path, NEW), published)
    assert OLD not in str(refused.value)
    assert NEW not in str(refused.value)
    open_both(signed_by(tmp_path, NEW, OLD), published)


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_an_unsigned_artifact_is_refused_and_says_what_to_do(
    tmp_path: Path, published: dict[str, Any], part: str
) -> None:
    (published[part].path / SIGNATURE).unlink()
    with pytest.raises(ArtifactUntrusted, match=r"not signed.*adaptide artifacts sign"):
        open_both(signed_by(tmp_path, OLD), published)


def test_the_signature_of_another_artifact_is_refused(tmp_path: Path, published: dict[str, Any]) -> None:
    (published["adapter"].path / SIGNATURE).write_bytes((published["base"].path / SIGNATURE).read_bytes())
    with pytest.raises(ArtifactUntrusted, match="not that of its manifest"):
        open_both(signed_by(tmp_path, OLD), published)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"key":1}', b'{"key":"zz"}'])
def test_a_signature_that_is_none_is_refused(tmp_path: Path, published: dict[str, Any], damage: bytes) -> None:
    (published["adapter"].path / SIGNATURE).write_bytes(damage)
    with pytest.raises(ArtifactUntrusted, match="is no signature"):
        open_both(signed_by(tmp_path, OLD), published)


def test_an_adapter_is_not_made_for_a_base_that_nobody_signed(tmp_path: Path) -> None:
    base = signed_by(tmp_path).publish_base(base_folder(tmp_path / "base"), {})
    with pytest.raises(ArtifactUntrusted, match="not signed"):
        signed_by(tmp_path, OLD).publish_adapter(adapter_folder(tmp_path / "adapter"), {"base_id": base.id})


def test_publishing_again_with_a_key_signs_what_had_no_signature(tmp_path: Path) -> None:
    made = signed_by(tmp_path).publish_base(base_folder(tmp_path / "base"), {})
    assert signed_by(tmp_path, OLD).publish_base(tmp_path / "base", {}) == made
    signed_by(tmp_path, OLD).open_base(made.id, made.digest)
    assert sorted(path.name for path in made.path.iterdir()) == ["codec", "manifest.json", SIGNATURE, "model"]


def test_a_wrong_key_marks_nothing_corrupt_and_the_one_before_goes_on_serving(shelf: Shelf) -> None:
    shelf.artifacts = ArtifactStore(shelf.artifacts.root, keys=Keys(OLD))
    base = shelf.active_base()
    engine = SumEngine()
    activation = Activation(
        shelf.database, shelf.clock, shelf.artifacts, engine, load_settings().poll_interval, warm=lambda model: None
    )
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    service.promote(shelf.database, shelf.clock, shelf.artifacts, first, ADMIN)
    assert activation.refresh().adapter_version == first
    service.promote(shelf.database, shelf.clock, shelf.artifacts, second, ADMIN)
    signature = shelf.artifacts.root / ADAPTERS / second / SIGNATURE
    signature.write_bytes(Keys(NEW).sign((signature.parent / "manifest.json").read_bytes()) or b"")

    status = activation.refresh()

    assert (status.adapter_version, status.wanted_version) == (first, second)
    assert "signed with key" in (status.degraded or "")
    assert len(engine.models) == 1, "nothing of it reached the engine"
    with pytest.raises(Conflict, match="signed with key"):
        integrity.verify(shelf.database, shelf.clock, shelf.artifacts, second, actor="test")
    assert service.read_adapter(shelf.database, second).adapter.state is AdapterState.ACTIVE
    activation.stop()


@pytest.fixture
def command(
    shelf: Shelf, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """`adaptide artifacts` works on the shelf; its logging is put back."""
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", database_url)
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", str(tmp_path / "artifacts"))
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield monkeypatch
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def sign() -> Any:
    result = CliRunner().invoke(app, ["sign", "--json"])
    if isinstance(result.exception, AdaptideError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_is_introduced_and_changed_by_signing_what_is_registered(
    shelf: Shelf, command: pytest.MonkeyPatch, database: Database, clock: SetClock, tmp_path: Path
) -> None:
    base = shelf.base()
    version = shelf.adapter(base, 0.1)
    with database.read() as connection:
        digest = service.require_adapter(connection, version).digest
        base_digest = service.require_base(connection, base).digest
    with pytest.raises(ConfigurationError, match="openssl rand"):
        sign()

    command.setenv("ADAPTIDE_SIGNING_KEY", OLD)
    old = Keys(OLD).ids[0]
    assert sign() == {"key": old, "signed": [base, version], "signed_before": [], "refused": {}}
    assert sign()["signed_before"] == [base, version]
    command.setenv("ADAPTIDE_SIGNING_KEY", NEW)
    command.setenv("ADAPTIDE_SIGNING_KEYS_ACCEPTED", f" {OLD} ,")
    assert sign()["signed"] == [base, version]

    only_new = signed_by(tmp_path, NEW)
    only_new.open_adapter(version, digest, only_new.open_base(base, base_digest))
    entries = read_page(database, limit=10, before=None).entries
    done = [
        (entry.actor, entry.subject, (entry.details or {})["key"])
        for entry in entries
        if entry.action == "artifact.sign"
    ]
    new = Keys(NEW).ids[0]
    assert sorted(done) == sorted([("cli", name, key) for name in (base, version) for key in (old, new)])


def test_what_is_not_what_was_registered_is_not_signed(shelf: Shelf, command: pytest.MonkeyPatch) -> None:
    base = shelf.base()
    whole, damaged = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    shelf.damage(damaged)
    command.setenv("ADAPTIDE_SIGNING_KEY", OLD)
    with pytest.raises(Conflict, match="1 were not signed"):
        sign()
    assert (shelf.artifacts.root / ADAPTERS / whole / SIGNATURE).exists()
    assert (shelf.artifacts.root / BASES / base / SIGNATURE).exists()
    assert not (shelf.artifacts.root / ADAPTERS / damaged / SIGNATURE).exists()


def test_a_collected_adapter_is_not_signed(shelf: Shelf, command: pytest.MonkeyPatch) -> None:
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1)
    with shelf.database.write() as connection:
        service.repository.set_state(connection, version, AdapterState.COLLECTED)
    command.setenv("ADAPTIDE_SIGNING_KEY", OLD)
    assert sign()["signed"] == [base]


@pytest.mark.parametrize(
    ("key", "accepted", "words"),
    [
        ("short", "", "32 printable characters"),
        ("k" * 40 + "\n", "", "32 printable characters"),
        ("k" * 20 + " " + "k" * 20, "", "32 printable characters"),
        ("k" * 40, "short", "32 printable characters"),
        ("", "k" * 40, "needs ADAPTIDE_SIGNING_KEY"),
    ],
)
def test_keys_that_are_none_are_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str, accepted: str, words: str
) -> None:
    monkeypatch.setenv("ADAPTIDE_SIGNING_KEY", key)
    monkeypatch.setenv("ADAPTIDE_SIGNING_KEYS_ACCEPTED", accepted)
    with pytest.raises(ConfigurationError, match=words) as refused:
        load_settings()
    assert "kkkk" not in str(refused.value)
    assert "short" not in str(refused.value)


def test_a_refusal_names_every_key_that_counts() -> None:
    with pytest.raises(ArtifactUntrusted, match=f"here only {', '.join(Keys(OLD, [NEW]).ids)} count"):
        Keys(OLD, [NEW]).check(b"{}", Keys("x" * 40).sign(b"{}"))


def test_keys_show_themselves_by_their_numbers_only() -> None:
    assert OLD not in repr(Keys(OLD, [NEW]))
    assert repr(Keys()) == "Keys(none)"
    assert OLD not in repr(load_settings(signing_key=OLD))


def test_the_tensors_are_those_that_were_signed(tmp_path: Path, published: dict[str, Any]) -> None:
    """A signature says nothing about content that a manifest does not list: every byte is hashed all the same."""
    store = signed_by(tmp_path, OLD)
    base = store.open_base(published["base"].id, published["base"].digest)
    opened = store.open_adapter(published["adapter"].id, published["adapter"].digest, base)
    assert opened.tensors.keys() == adapter_tensors().keys()

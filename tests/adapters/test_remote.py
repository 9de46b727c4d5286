"""Artifacts on S3: seen whole or not at all, read through a cache that never vouches, and no failure hangs or tells."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from service.adapters.artifacts import ADAPTERS, BASES, ArtifactStore, Published, VerifiedBase
from service.adapters.place import open_artifacts, require_writable
from service.adapters.signatures import SIGNATURE
from service.errors import (
    ArtifactError,
    ArtifactMissing,
    ArtifactUnreachable,
    ArtifactUntrusted,
    ConfigurationError,
)
from service.kit.objects import ObjectFolder
from service.settings import Settings
from tests.adapters.tiny import adapter_folder, adapter_tensors, base_folder
from tests.rights import linux, locked
from tests.s3 import KEY, SECRET, Answer, S3Server, between, refuse, serving, use

DATE = "Sun, 01 Mar 2026 12:00:00 GMT"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where this test's objects lie on the server's disk."""
    use(monkeypatch, server.url)
    return server.bucket("shop") / prefix(tmp_path)


def prefix(tmp_path: Path) -> str:
    return tmp_path.name.replace("_", "-")


def opened(tmp_path: Path, home: str = "home", **changes: object) -> ArtifactStore:
    """A machine's view of the test's own prefix in the bucket; each `home` is another machine."""
    url = f"s3://shop/{prefix(tmp_path)}"
    wanted: dict[str, object] = {
        "home": tmp_path / home,
        "artifacts_url": url,
        "artifacts_timeout": timedelta(seconds=5),
    }
    return open_artifacts(Settings.model_validate(wanted | changes))


@pytest.fixture
def store(bucket: Path, tmp_path: Path) -> ArtifactStore:
    return opened(tmp_path)


@pytest.fixture
def base(store: ArtifactStore, tmp_path: Path) -> VerifiedBase:
    made = store.publish_base(base_folder(tmp_path / "base"), {"note": "first"})
    return store.open_base(made.id, made.digest)


@pytest.fixture
def adapter(store: ArtifactStore, base: VerifiedBase, tmp_path: Path) -> Published:
    return store.publish_adapter(adapter_folder(tmp_path / "adapter"), {"base_id": base.base_id}, 7)


def objects(store: ArtifactStore) -> ObjectFolder:
    assert store.remote is not None
    return store.remote.objects


def published(bucket: Path, name: str) -> Path:
    [folder] = bucket.glob(f"*/{name}")
    return folder


def no_secret_in(text: str) -> bool:
    return SECRET not in text and KEY not in text


def test_what_one_machine_publishes_another_opens(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    elsewhere = opened(tmp_path, "other")
    found = elsewhere.open_base(base.base_id, base.digest)
    assert found.metadata == {"note": "first"}
    assert sorted(path.name for path in (found.path / "codec").iterdir()) == ["codec.json", "codec.safetensors"]
    opened_adapter = elsewhere.open_adapter(adapter.id, adapter.digest, found)
    for name, tensor in adapter_tensors().items():
        np.testing.assert_array_equal(opened_adapter.tensors[name], tensor)
    assert elsewhere.read_dimensions(base.base_id, base.digest) == base.dimensions
    assert elsewhere.names(ADAPTERS) == [adapter.id]
    assert elsewhere.names(BASES) == [base.base_id]


def test_publishing_again_changes_nothing_and_another_content_is_refused(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, bucket: Path, tmp_path: Path
) -> None:
    again = store.publish_adapter(adapter_folder(tmp_path / "again"), {"base_id": base.base_id}, 7)
    assert again == adapter
    name = f"{ADAPTERS}/{adapter.id}/manifest.json"
    objects(store).put(name, objects(store).read(name, 10_000) + b" ")
    with pytest.raises(ArtifactError, match="never reused"):
        store.publish_adapter(adapter_folder(tmp_path / "third"), {"base_id": base.base_id}, 7)


def test_publishers_of_the_same_content_at_once_all_succeed(
    store: ArtifactStore, base: VerifiedBase, tmp_path: Path
) -> None:
    made: list[Published] = []
    stores = [opened(tmp_path, f"m{n}") for n in range(4)]
    sources = [adapter_folder(tmp_path / f"s{n}") for n in range(4)]
    threads = [
        threading.Thread(target=lambda s=s, f=f: made.append(s.publish_adapter(f, {"base_id": base.base_id})))
        for s, f in zip(stores, sources, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.id for one in made}) == 1
    assert len(made) == 4
    assert store.names(ADAPTERS) == [made[0].id]
    opened(tmp_path, "reader").open_adapter(made[0].id, made[0].digest, base)


def test_a_second_opening_needs_no_network(
    server: S3Server, store: ArtifactStore, base: VerifiedBase, adapter: Published, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    store.open_adapter(adapter.id, adapter.digest, base)
    use(monkeypatch, "http://127.0.0.1:1")  # nothing listens there
    offline = opened(tmp_path)
    held = offline.open_base(base.base_id, base.digest)
    assert offline.open_adapter(adapter.id, adapter.digest, held).version == adapter.id
    assert offline.read_dimensions(base.base_id, base.digest) == base.dimensions
    with pytest.raises(ArtifactUnreachable, match="bucket shop"):
        opened(tmp_path, "new").open_base(base.base_id, base.digest)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "extra", "link"])
def test_a_damaged_cache_entry_is_thrown_away_and_fetched_again(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, damage: str
) -> None:
    path = store.open_adapter(adapter.id, adapter.digest, base).path / WEIGHTS
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(good[:100])
    elif damage == "delete":
        path.unlink()
    elif damage == "extra":
        (path.parent / "extra.json").write_text("{}")
    else:
        path.unlink()
        path.symlink_to("/etc/passwd")
    again = store.open_adapter(adapter.id, adapter.digest, base)
    assert (again.path / WEIGHTS).read_bytes() == good
    assert not (again.path / "extra.json").exists()


@linux
def test_a_cache_entry_that_cannot_be_read_now_is_kept(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    path = store.open_adapter(adapter.id, adapter.digest, base).path / WEIGHTS
    before = path.stat().st_ino
    with locked(path), pytest.raises(ArtifactUnreachable, match="give this user the right"):
        store.open_adapter(adapter.id, adapter.digest, base)
    assert store.open_adapter(adapter.id, adapter.digest, base).path / WEIGHTS == path
    assert path.stat().st_ino == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "delete", "manifest"])
def test_a_damaged_published_artifact_is_refused_and_enters_no_cache(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, bucket: Path, damage: str
) -> None:
    place, name = objects(store), f"{ADAPTERS}/{adapter.id}/{WEIGHTS}"
    good = place.read(name, 10_000)
    if damage == "flip":
        place.put(name, good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "truncate":
        place.put(name, good[:100])
    elif damage == "grow":
        place.put(name, good + b"\0" * 2**20)
    elif damage == "delete":
        place.delete(name)
    else:
        place.put(f"{ADAPTERS}/{adapter.id}/manifest.json", b"{}")
    with pytest.raises(ArtifactError) as refused:
        store.open_adapter(adapter.id, adapter.digest, base)
    assert not isinstance(refused.value, ArtifactMissing), "it would not be marked corrupt"
    assert not (store.root / ADAPTERS / adapter.id).exists()
    assert [p.name for p in (store.root / ADAPTERS).iterdir() if not p.name.startswith(".lock")] == []


def test_an_object_that_the_manifest_does_not_list_is_never_fetched(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    objects(store).put(f"{ADAPTERS}/{adapter.id}/run_me.py", b"print()")
    found = store.open_adapter(adapter.id, adapter.digest, base)
    assert sorted(path.name for path in found.path.iterdir()) == ["adapter_config.json", WEIGHTS, "manifest.json"]


def test_without_its_manifest_nothing_is_published(
    store: ArtifactStore, base: VerifiedBase, adapter: Published
) -> None:
    objects(store).delete(f"{ADAPTERS}/{adapter.id}/manifest.json")
    with pytest.raises(ArtifactMissing, match="ADAPTIDE_ARTIFACTS_URL"):
        store.open_adapter(adapter.id, adapter.digest, base)


def test_a_name_never_reaches_outside(store: ArtifactStore, base: VerifiedBase) -> None:
    for name in ("../a000007-000000000000", "a000007-000000000000/..", "%2e%2e", "/etc/passwd", "s3://other/x"):
        with pytest.raises(ArtifactError, match="no adapter version"):
            store.open_adapter(name, "0" * 64, base)


def test_an_artifact_larger_than_the_cache_is_refused_before_it_is_fetched(
    base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    small = opened(tmp_path, "small", artifacts_cache_bytes=1000)
    with pytest.raises(ArtifactUnreachable, match="ADAPTIDE_ARTIFACTS_CACHE_BYTES"):
        small.open_adapter(adapter.id, adapter.digest, base)
    assert sum(path.stat().st_size for path in small.root.rglob("*") if path.is_file()) == 0


def test_a_bucket_that_does_not_exist_is_named(bucket: Path, tmp_path: Path) -> None:
    missing = opened(tmp_path, artifacts_url="s3://nowhere/x")
    with pytest.raises(ConfigurationError, match=r"ADAPTIDE_ARTIFACTS_URL.*bucket nowhere does not exist"):
        require_writable(missing)
    with pytest.raises(ArtifactUnreachable, match="nowhere does not exist"):
        missing.publish_base(base_folder(tmp_path / "b"), {})


def test_wrong_credentials_are_refused_without_being_told(
    server: S3Server, bucket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, server.url, secret="another-secret-of-an-operator")
    with pytest.raises(ConfigurationError, match="bucket shop refuses these credentials") as refused:
        require_writable(opened(tmp_path))
    assert "another-secret" not in str(refused.value)
    assert no_secret_in(str(refused.value))
    assert refused.value.__suppress_context__ or refused.value.__cause__ is not None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refuse("AccessDenied"), "refuses these credentials .AccessDenied."),
        (refuse("QuotaExceeded", 400), "full or its quota is reached"),
        (refuse("InternalError", 500), "InternalError"),
        ((503, b"slow down", {}), "bucket shop"),
    ],
)
def test_a_bucket_that_takes_nothing_leaves_nothing_visible(
    server: S3Server, base: VerifiedBase, bucket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    answer: tuple[int, bytes, dict[str, str]], words: str,
) -> None:  # fmt: skip
    def meddle(method: str, path: str, body: bytes) -> Answer:
        return answer if method in ("PUT", "POST") and WEIGHTS in path else None

    with between(server, meddle) as url:
        use(monkeypatch, url)
        store = opened(tmp_path, artifacts_timeout=timedelta(seconds=2))
        with pytest.raises(ArtifactUnreachable, match=words) as failed:
            store.publish_adapter(adapter_folder(tmp_path / "adapter"), {"base_id": base.base_id}, 1)
        text = str(failed.value)
    assert "bucket shop" in text
    assert no_secret_in(text)
    assert not list(bucket.glob("adapters/*/manifest.json"))


def test_a_read_only_bucket_serves_and_says_why_it_takes_nothing(
    server: S3Server, base: VerifiedBase, adapter: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with between(
        server, lambda method, path, body: None if method in ("GET", "HEAD") else refuse("AccessDenied")
    ) as url:
        use(monkeypatch, url)
        reader = opened(tmp_path, "reader")
        reader.check()
        found = reader.open_base(base.base_id, base.digest)
        assert reader.open_adapter(adapter.id, adapter.digest, found).version == adapter.id
        with pytest.raises(ConfigurationError, match="refuses these credentials"):
            require_writable(reader)


def test_a_server_killed_in_the_middle_of_an_upload_leaves_nothing_visible_and_a_retry_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "s3") as server:
        server.bucket("shop")
        use(monkeypatch, server.url)
        store = opened(tmp_path)
        base = store.publish_base(base_folder(tmp_path / "base"), {})
        source = adapter_folder(tmp_path / "adapter")

        def meddle(method: str, path: str, body: bytes) -> Answer:
            if method == "PUT" and WEIGHTS in path:
                server.kill()
            return None

        with between(server, meddle) as url:
            use(monkeypatch, url)
            cut = opened(tmp_path, artifacts_timeout=timedelta(seconds=2))
            with pytest.raises(ArtifactUnreachable, match="bucket shop"):
                cut.publish_adapter(source, {"base_id": base.id}, 1)
        server.start()
        [left] = store.names(ADAPTERS)
        with pytest.raises(ArtifactMissing):
            store.verify_adapter(left, "0" * 64, base.id, store.read_dimensions(base.id, base.digest))
        made = store.publish_adapter(source, {"base_id": base.id}, 1)
        assert made.id == left
        store.open_adapter(made.id, made.digest, store.open_base(base.id, base.digest))


def test_a_download_that_is_damaged_on_its_way_is_fetched_once_more(
    server: S3Server, base: VerifiedBase, adapter: Published, bucket: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    good = (published(bucket, adapter.id) / WEIGHTS).read_bytes()
    asked = []

    def meddle(method: str, path: str, body: bytes) -> Answer:
        if method != "GET" or WEIGHTS not in path:
            return None
        asked.append(path)
        whole = {"Content-Range": f"bytes 0-{len(good) - 1}/{len(good)}", "ETag": '"x"', "Last-Modified": DATE}
        return (206, b"\xff" * len(good), whole) if len(asked) == 1 else None

    with between(server, meddle) as url:
        use(monkeypatch, url)
        found = opened(tmp_path, "far").open_adapter(adapter.id, adapter.digest, base)
    assert (found.path / WEIGHTS).read_bytes() == good
    assert len(asked) == 2


def test_what_another_process_fetches_meanwhile_is_as_good(
    server: S3Server, base: VerifiedBase, adapter: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, shared = threading.Lock(), opened(tmp_path, "shared")  # it has looked at the server's address already

    def meddle(method: str, path: str, body: bytes) -> Answer:
        if path.endswith(WEIGHTS) and method == "GET" and first.acquire(blocking=False):
            shared.open_adapter(adapter.id, adapter.digest, base)
        return None

    with between(server, meddle) as url:
        use(monkeypatch, url)
        late = opened(tmp_path, "shared")
        assert late.open_adapter(adapter.id, adapter.digest, base).version == adapter.id
    assert first.locked()
    assert [path.name for path in (shared.root / ADAPTERS).iterdir() if path.is_dir()] == [adapter.id]


def test_a_server_that_says_nothing_is_given_up(
    server: S3Server, base: VerifiedBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    over = threading.Event()

    def meddle(method: str, path: str, body: bytes) -> Answer:
        over.wait(60)
        return 500, b"", {}

    with between(server, meddle) as url:
        use(monkeypatch, url)
        silent = opened(tmp_path, "new", artifacts_timeout=timedelta(seconds=0.5))
        began = time.monotonic()
        with pytest.raises(ArtifactUnreachable):
            silent.open_base(base.base_id, base.digest)
        assert time.monotonic() - began < 30
        over.set()


def test_a_server_that_hangs_holds_few_threads_and_is_then_not_asked(
    server: S3Server, base: VerifiedBase, adapter: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, over = [], threading.Event()

    def meddle(method: str, path: str, body: bytes) -> Answer:
        if over.is_set():
            return None
        asked.append(path)
        over.wait(60)
        return 500, b"", {}

    refusals: list[str] = []

    def read(store: ArtifactStore) -> None:
        with pytest.raises(ArtifactUnreachable) as refused:
            store.open_adapter(adapter.id, adapter.digest, base)
        refusals.append(refused.value.detail)

    with between(server, meddle) as url:
        use(monkeypatch, url)
        hung = opened(tmp_path, "new", artifacts_timeout=timedelta(seconds=1))
        readers = [threading.Thread(target=read, args=(hung,)) for _ in range(30)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert sum("are waiting for its answer already" in refusal for refusal in refusals) >= 30 - 8
        before = len(asked)
        read(hung)
        assert "bucket shop is not asked: it failed a moment ago" in refusals[-1]
        assert len(asked) == before
        over.set()
        hung.check()  # whoever watches the place finds that it is back
        assert hung.open_adapter(adapter.id, adapter.digest, base).version == adapter.id


def test_what_is_damaged_does_not_keep_others_from_being_read(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    other = store.publish_adapter(adapter_folder(tmp_path / "o", adapter_tensors(0.3)), {"base_id": base.base_id}, 8)
    objects(store).put(f"{ADAPTERS}/{adapter.id}/{WEIGHTS}", b"cut")
    with pytest.raises(ArtifactError):
        store.open_adapter(adapter.id, adapter.digest, base)
    assert store.open_adapter(other.id, other.digest, base).version == other.id


def test_what_was_fetched_and_does_not_fit_is_refused_at_once(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    other = store.publish_base(base_folder(tmp_path / "other", value=0.7), {})
    elsewhere = opened(tmp_path, "elsewhere")
    held = elsewhere.open_base(other.id, other.digest)
    with pytest.raises(ArtifactError, match=f"made for base {base.base_id}, not for {other.id}"):
        elsewhere.open_adapter(adapter.id, adapter.digest, held)


def test_dimensions_come_from_the_bucket_where_the_cache_is_damaged_and_from_nowhere_when_both_are(
    store: ArtifactStore, base: VerifiedBase, bucket: Path
) -> None:
    (base.path / "model" / "config.json").write_text("{}")
    assert store.read_dimensions(base.base_id, base.digest) == base.dimensions
    config = published(bucket, base.base_id) / "model" / "config.json"
    config.write_bytes(config.read_bytes()[:-1] + b" ")
    with pytest.raises(ArtifactError, match=r"model/config\.json is not what the manifest's sha256 says"):
        store.read_dimensions(base.base_id, base.digest)


def test_publishing_again_what_lies_there_damaged_is_an_error(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, bucket: Path, tmp_path: Path
) -> None:
    weights = published(bucket, adapter.id) / WEIGHTS
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} in .* is not what was uploaded"):
        store.publish_adapter(adapter_folder(tmp_path / "again"), {"base_id": base.base_id}, 7)


def test_nothing_has_no_size(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="nothing is there"):
        store.measure(ADAPTERS, "a000009-000000000000")


@linux
def test_a_cache_that_takes_nothing_is_out_of_reach(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    elsewhere = opened(tmp_path, "elsewhere")
    held = elsewhere.open_base(base.base_id, base.digest)
    assert elsewhere.remote is not None
    elsewhere.remote.cache.hold(ADAPTERS, adapter.id)  # its lock is there
    with locked(elsewhere.root / ADAPTERS, 0o500), pytest.raises(ArtifactUnreachable, match="could not be fetched"):
        elsewhere.open_adapter(adapter.id, adapter.digest, held)
    assert elsewhere.open_adapter(adapter.id, adapter.digest, held).version == adapter.id


def test_signatures_travel_and_a_cache_from_before_the_key_is_fetched_anew(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    store.open_adapter(adapter.id, adapter.digest, base)  # in the cache, unsigned
    old, new = "o" * 40, "n" * 40
    keyed = opened(tmp_path, signing_key=old)
    with pytest.raises(ArtifactUntrusted, match="not signed"):
        keyed.open_base(base.base_id, base.digest)
    assert keyed.without_keys().open_base(base.base_id, base.digest) == base
    for room, name, digest in ((BASES, base.base_id, base.digest), (ADAPTERS, adapter.id, adapter.digest)):
        assert keyed.sign(room, name, digest)
        assert not keyed.sign(room, name, digest)
    held = keyed.open_base(base.base_id, base.digest)
    assert keyed.open_adapter(adapter.id, adapter.digest, held).version == adapter.id
    signed = keyed.publish_adapter(adapter_folder(tmp_path / "s", adapter_tensors(0.3)), {"base_id": base.base_id}, 8)
    assert opened(tmp_path, "far", signing_key=new, signing_keys_accepted=old).open_adapter(
        signed.id, signed.digest, held
    )
    objects(store).put(f"{ADAPTERS}/{signed.id}/{SIGNATURE}", b"{}")
    with pytest.raises(ArtifactUntrusted, match="is no signature"):
        opened(tmp_path, "third", signing_key=old).open_adapter(signed.id, signed.digest, held)
    assert not (tmp_path / "third" / "cache" / "artifacts" / ADAPTERS / signed.id).exists()


def test_removing_begins_with_the_manifest_and_can_be_cut_off(
    server: S3Server, store: ArtifactStore, base: VerifiedBase, adapter: Published, bucket: Path,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    def meddle(method: str, path: str, body: bytes) -> Answer:
        return refuse("AccessDenied") if method == "DELETE" and "manifest" not in path else None

    folder = published(bucket, adapter.id)
    with between(server, meddle) as url:
        use(monkeypatch, url)
        with pytest.raises(ArtifactUnreachable, match="deleted"):
            opened(tmp_path).remove(ADAPTERS, adapter.id)
    assert not (folder / "manifest.json").exists()
    assert (folder / WEIGHTS).exists()
    with pytest.raises(ArtifactMissing):
        opened(tmp_path, "other").open_adapter(adapter.id, adapter.digest, base)
    use(monkeypatch, server.url)
    size, written = store.measure(ADAPTERS, adapter.id)
    assert size > 0
    assert abs(datetime.now(UTC) - written) < timedelta(hours=1)
    store.remove(ADAPTERS, adapter.id)
    assert store.names(ADAPTERS) == []


PROCESS = """
import sys
from datetime import timedelta
from service.adapters.place import open_artifacts
from service.settings import Settings
home, url, base_id, base_digest, version, digest = sys.argv[1:]
store = open_artifacts(Settings(home=home, artifacts_url=url))
base = store.open_base(base_id, base_digest)
print(store.open_adapter(version, digest, base).version)
"""


def test_processes_that_fetch_the_same_at_once_share_the_cache(
    store: ArtifactStore, base: VerifiedBase, adapter: Published, tmp_path: Path
) -> None:
    url = f"s3://shop/{prefix(tmp_path)}"
    ask = [tmp_path / "shared", url, base.base_id, base.digest, adapter.id, adapter.digest]
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, *map(str, ask)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == [adapter.id] * 2
    entries = [path.name for path in (tmp_path / "shared" / "cache" / "artifacts").glob("*/*")]
    assert sorted(name for name in entries if not name.startswith(".lock-")) == sorted([adapter.id, base.base_id])

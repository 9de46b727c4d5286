"""A window's whole way through the updater, with a real base: what is due, what comes of it, what can go wrong."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import structlog
import torch

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.moves import MoveRequest
from service.adapters.repository import NewBase
from service.adapters.states import AdapterState
from service.catalog.follower import CatalogueFollower
from service.catalog.index import CatalogueIndex
from service.errors import ConfigurationError, Conflict
from service.generation.backbone import Backbone, load_backbone
from service.generation.reference import score_items
from service.kit import leases, migrate
from service.kit.db import Database
from service.settings import Settings
from service.tables import metadata
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.service import UPDATER_LEASE
from service.windows.states import SealedBecause, WindowState
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.leases import run_out
from trainer.base import BuiltBase
from trainer.examples import build_examples
from trainer.learn import Steps, learn
from trainer.limits import MIB
from trainer.lora import LoraBackbone
from trainer.methods import make_method
from trainer.methods.base import Adapter, Covariance, Stage
from trainer.methods.single_evolving import SingleEvolving
from trainer.outcome import Range, open_range, rehearsal_summary, window_summary
from trainer.progress import Stopped
from trainer.streams import load_streams
from trainer.telemetry import SILENT
from trainer.updater import Updater

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part
ADMIN = MoveRequest("key:admin")
EVENTS = 6 * worlds.USERS  # of one window of the small world


def make_settings(home: Path, database_url: str, **changes: Any) -> Settings:
    """Quick updates that surely learn the small world's new pattern."""
    chosen: dict[str, Any] = {
        "home": home,
        "database_url": database_url,
        "learning_rate_update": 1e-2,
        "update_epochs": 2,
        "update_min_steps": 0,
        "update_batch_size": 32,
        "evaluation_items_per_user": 2,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "window_max_events": EVENTS,
        "window_min_events": 5,
        "window_retry_pause": timedelta(0),
    }
    return Settings(**(chosen | changes))


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return make_settings(tmp_path / "home", database_url)


@pytest.fixture
def built(built_world: BuiltWorld, database: Database, settings: Settings) -> BuiltBase:
    """The small world with its base, in this test's store and home."""
    return built_world.copy_into(database, settings.artifacts_dir)


class Desk:
    """What a test needs at hand to run updates."""

    def __init__(self, database: Database, settings: Settings, clock: SetClock) -> None:
        self.database, self.settings, self.clock = database, settings, clock
        self.artifacts = ArtifactStore(settings.artifacts_dir)

    def updater(self, monotonic: Callable[[], float] = time.monotonic, **changes: Any) -> Updater:
        settings = self.settings.model_copy(update=changes)
        return Updater(self.database, settings, self.clock, self.artifacts, monotonic=monotonic)

    def send(self, events: list[dict[str, Any]]) -> None:
        worlds.send(self.database, self.clock, events)

    def close(self) -> Window:
        window = windows.seal(self.database, self.clock, self.settings, SealedBecause.MANUAL)
        assert window is not None
        return window

    def pointer(self) -> adapter_rows.Pointer:
        return adapters.read_registry(self.database).pointer

    def published(self) -> set[str]:
        return {path.name for path in (self.settings.artifacts_dir / "adapters").iterdir()}

    def state(self, version: str) -> AdapterState:
        return adapters.read_adapter(self.database, version).adapter.state

    def damage(self, path: str) -> None:
        """Flip the last bit of an artifact's file."""
        [file] = self.settings.artifacts_dir.glob(path)
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))


@pytest.fixture
def desk(database: Database, settings: Settings, clock: SetClock) -> Desk:
    return Desk(database, settings, clock)


def worked(window: Window | None) -> Window:
    assert window is not None
    return window


def once(during: str, action: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A Report that runs `action` when step `during` is done for the first time."""
    left = [action]

    def report(step: str, done: int, total: int) -> None:
        if step == during and done == total and left:
            left.pop()()

    return report


# What is due


def test_a_store_without_events_needs_no_update(desk: Desk) -> None:
    assert desk.updater().tick() is None


def test_a_window_that_is_not_full_waits(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks()[:-1])
    assert desk.updater().tick() is None
    assert windows.due(desk.database, desk.clock, desk.settings) is None


def test_a_full_window_is_sealed_and_trained_and_the_next_begins_after_it(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks() + worlds.later_walks(2)[:10])
    window = worked(desk.updater().tick())
    assert (window.sealed_because, window.events, window.verdict) == (SealedBecause.COUNT, EVENTS, "promoted")
    assert desk.updater().tick() is None
    assert windows.read_page(desk.database, desk.settings, limit=1, before=None).open.events == 10


def test_an_old_window_is_sealed_by_age(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks()[:200])
    desk.clock.advance(hours=1)
    window = worked(desk.updater().tick())
    assert (window.sealed_because, window.events) == (SealedBecause.AGE, 200)


# What a promoted window leaves


def test_a_promoted_window_moves_the_pointer_and_says_how_it_went(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks())
    window = worked(desk.updater().tick())
    assert (window.state, window.reason, window.attempts) == (WindowState.PROMOTED, None, 1)
    version = window.candidate_version
    assert version is not None

    pointer = desk.pointer()
    assert (pointer.base_id, pointer.adapter_version, pointer.revision) == (built.base_id, version, 2)
    adapter = adapters.read_adapter(desk.database, version).adapter
    assert (adapter.state, adapter.parent_version, adapter.window_id) == (
        AdapterState.ACTIVE,
        built.adapter_version,
        window.window_id,
    )
    assert adapter.trained_through == worlds.START + timedelta(days=1, minutes=5, seconds=59)
    assert adapter.hyperparameters["proximal_weight"] == 2.0
    assert adapter.hyperparameters["epochs"] == len((window.statistics or {})["losses"])  # those that were run
    assert desk.state(built.adapter_version) is AdapterState.RETIRED

    steps = {row["step"]: row["outcome"] for row in window.steps or []}
    assert steps == {
        "catalogue": "followed",
        "examples": "built",
        "popularity": "counted",
        "drift": "measured",
        "evaluate_before": "scored",
        "fit": "adapted",
        "evaluate_after": "scored",
        "gate": "passed",
        "publish": version,
    }
    assert all(row["seconds"] >= 0 for row in window.steps or [])


def test_a_promoted_window_is_measured_against_incumbent_base_and_popularity(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks())
    window = worked(desk.updater().tick())
    found = {evaluation.subject: evaluation for evaluation in window.evaluations}
    assert found.keys() == {"candidate", "incumbent", "base", "popularity"}
    assert {e.users for e in found.values()} == {worlds.USERS}
    assert (found["candidate"].adapter_version, found["incumbent"].adapter_version) == (
        window.candidate_version,
        built.adapter_version,
    )
    # The first adapter changes nothing, so it ranks as the base does.
    assert found["incumbent"].ndcg_10 == found["base"].ndcg_10 < found["candidate"].ndcg_10
    comparison = found["candidate"].comparison
    assert comparison is not None
    assert comparison["difference"] == pytest.approx(found["candidate"].ndcg_10 - found["incumbent"].ndcg_10)

    told = window.statistics or {}
    assert (told["interactions"], told["users"], told["test_users"], told["unknown_items"]) == (EVENTS, 60, 60, 0)
    assert told["targets"] == 4 * worlds.USERS
    # Everybody and everything has been there before, and most items are as usual as ever.
    assert (told["new_user_share"], told["new_item_share"]) == (0, 0)
    assert 0 < told["category_drift"] < 0.3
    assert 0 < told["code_drift"] < 0.3
    assert told["validation_loss"][0][0] == 0
    assert told["validation_loss"][told["best_epoch"]][1] < told["validation_loss"][0][1]
    assert told["prequential"].keys() == {"incumbent", "base", "popularity"}
    assert told["prequential"]["incumbent"]["users"] == worlds.USERS
    assert told["groups"]["known_users"]["candidate"]["ndcg@10"] == pytest.approx(found["candidate"].ndcg_10)
    assert {group: own["candidate"]["users"] for group, own in told["groups"].items()} == {
        "known_users": worlds.USERS,
        "new_users": 0,
        "known_items": worlds.USERS,
        "new_items": 0,
    }
    summary = window_summary(window)
    assert summary["metrics"]["candidate"]["ndcg@10"] == found["candidate"].ndcg_10


@on_sqlite
@pytest.mark.parametrize("method", ["peso", "single-evolving"])
def test_only_peso_is_held_back_by_its_previous_state(desk: Desk, built: BuiltBase, method: str) -> None:
    desk.send(worlds.later_walks())
    window = worked(desk.updater(method=method).tick())
    told = window.statistics or {}
    assert (window.method, window.verdict) == (method, "promoted")
    assert len(told["gradient_ratio"]) == len(told["losses"]) == 2
    assert all((ratio > 0) is (method == "peso") for ratio in told["gradient_ratio"])
    assert all((value > 0) is (method == "peso") for value in told["proximal"])


@on_sqlite
def test_an_unknown_method_is_refused_before_any_work(desk: Desk) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        desk.updater(method="sum-lora")
    assert all(name in refusal.value.detail for name in ("peso", "pretrain", "sum-lora-all", "inf-lora-latest-inherit"))


def test_each_window_starts_from_what_the_one_before_left(desk: Desk, built: BuiltBase) -> None:
    updater = desk.updater()
    desk.send(worlds.later_walks() + worlds.later_walks(2))
    first, second = worked(updater.tick()), worked(updater.tick())
    assert (first.verdict, second.verdict) == ("promoted", "promoted")
    assert second.incumbent_version == first.candidate_version
    candidate = adapters.read_adapter(desk.database, second.candidate_version or "").adapter
    assert candidate.parent_version == first.candidate_version
    assert updater.tick() is None


def test_an_evolving_adapter_keeps_its_rank_and_scale_when_the_settings_have_moved_on(
    desk: Desk, built: BuiltBase
) -> None:
    incumbent = adapters.read_adapter(desk.database, built.adapter_version).adapter.hyperparameters
    desk.send(worlds.later_walks())

    window = worked(desk.updater(lora_rank=incumbent["rank"] + 3, lora_alpha=incumbent["alpha"] + 5).tick())

    assert (window.verdict, window.reason) == ("promoted", None)
    candidate = adapters.read_adapter(desk.database, window.candidate_version or "").adapter
    assert {name: candidate.hyperparameters[name] for name in ("rank", "alpha")} == incumbent


def test_the_same_window_and_seed_give_the_same_adapter(
    desk: Desk, built: BuiltBase, built_world: BuiltWorld, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'twin.db'}"
    settings = make_settings(tmp_path / "twin", url)
    database = Database(url)
    migrate.upgrade(database)
    built_world.copy_into(database, settings.artifacts_dir)
    versions = []
    for own in (desk, Desk(database, settings, desk.clock)):
        own.send(worlds.later_walks())
        versions.append(worked(own.updater().tick()).candidate_version)
    database.close()
    assert versions[0] == versions[1]  # a version is the hash of what was published


# Windows that need or allow no adapter


def test_a_window_before_the_first_base_is_skipped_with_the_reason(desk: Desk) -> None:
    worlds.put(desk.database, desk.clock, worlds.items())
    desk.send(worlds.later_walks())
    window = worked(desk.updater().tick())
    assert (window.verdict, window.attempts) == ("skipped", 1)
    assert "adaptide base build" in (window.reason or "")
    assert window.evaluations == []


def test_a_window_in_which_nobody_did_enough_is_skipped(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks(length=4))
    desk.close()
    window = worked(desk.updater().tick())
    assert (window.verdict, window.candidate_version) == ("skipped", None)
    assert "no user has 5 events" in (window.reason or "")
    assert (window.statistics or {})["users"] == 0


def test_a_window_of_unknown_items_is_skipped_and_says_how_many(desk: Desk, built: BuiltBase) -> None:
    strange = [event | {"item_id": "not " + event["item_id"]} for event in worlds.later_walks()]
    desk.send(strange)
    window = worked(desk.updater().tick())
    assert window.verdict == "skipped"
    told = window.statistics or {}
    assert (told["interactions"], told["unknown_items"], told["trained_through"]) == (EVENTS, EVENTS, None)


def test_too_few_users_to_judge_by_refuse_the_candidate(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks(users=19))
    desk.close()
    window = worked(desk.updater().tick())
    assert (window.verdict, window.reason) == ("refused", "too_few_users")
    assert desk.pointer().adapter_version == built.adapter_version
    assert desk.state(window.candidate_version or "") is AdapterState.REFUSED
    assert {e.subject: e.users for e in window.evaluations}["candidate"] == 19


@pytest.mark.parametrize("rate", [1.0, 1e18])
def test_an_update_that_only_gets_worse_or_diverges_ends_as_no_change(
    desk: Desk, built: BuiltBase, rate: float
) -> None:
    before = desk.published()
    # More of what the base knows well already.
    desk.send(list(worlds.walks("same", length=6, step=1, after=12, start=worlds.START + timedelta(days=1))))
    window = worked(desk.updater(learning_rate_update=rate).tick())
    assert (window.verdict, window.candidate_version) == ("no_change", None)
    assert "no epoch was better" in (window.reason or "")
    assert (window.statistics or {})["best_epoch"] == 0
    assert desk.pointer().adapter_version == built.adapter_version
    assert desk.published() == before
    assert {e.subject for e in window.evaluations} == {"incumbent", "base", "popularity"}


class Spoiling(SingleEvolving):
    """A method on a machine whose memory fails: `spoil` makes one weight of the adapter in training NaN."""

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        self.lora = lora
        return super().begin(lora, incumbent, covariance)

    @torch.no_grad()
    def spoil(self) -> None:
        next(iter(self.lora.parameters.values()))[0, 0] = torch.nan


def test_a_candidate_with_a_nan_is_refused_and_never_published(desk: Desk, built: BuiltBase) -> None:
    before = desk.published()
    updater = desk.updater()
    method = Spoiling()
    updater._method = method
    desk.send(worlds.later_walks())
    # Also when the last step is reported: what counts is that it happens after the best epoch was taken back.
    window = worked(updater.tick(lambda step, done, total: method.spoil() if (step, done) == ("fit", total) else None))
    assert (window.verdict, window.candidate_version) == ("refused", None)
    assert "non_finite_weights" in (window.reason or "")
    assert desk.published() == before
    assert desk.pointer().adapter_version == built.adapter_version
    desk.send(worlds.later_walks(2))
    assert worked(desk.updater().tick()).verdict == "promoted"


# Others at work


def test_a_pointer_that_an_admin_moves_meanwhile_is_respected_and_trained_from(desk: Desk, built: BuiltBase) -> None:
    def roll_back() -> None:
        adapters.rollback(desk.database, desk.clock, desk.artifacts, ADMIN, "base")

    updater = desk.updater()
    desk.send(worlds.later_walks())
    failed = worked(updater.tick(once("fit", roll_back)))
    assert (failed.state, failed.attempts, failed.candidate_version) == (WindowState.FAILED, 0, None)
    assert "revision is 2, not 1" in (failed.reason or "")
    assert desk.pointer().adapter_version is None

    again = worked(updater.tick())
    assert (again.window_id, again.attempts, again.verdict) == (failed.window_id, 1, "promoted")
    assert again.incumbent_version is None
    candidate = adapters.read_adapter(desk.database, again.candidate_version or "").adapter
    assert candidate.parent_version is None
    assert desk.pointer().adapter_version == again.candidate_version


def test_an_updater_that_lost_its_lease_writes_nothing_and_another_takes_the_window_over(
    desk: Desk, built: BuiltBase
) -> None:
    others: list[leases.Lease | None] = []

    def sleep_too_long() -> None:
        run_out(desk.database)
        with desk.database.write() as connection:
            duration = desk.settings.lease_duration
            others.append(leases.acquire(connection, UPDATER_LEASE, "another", duration))
        counts.append(worlds.row_counts(desk.database))

    counts: list[dict[str, int]] = []
    published = desk.published()
    desk.send(worlds.later_walks())
    left = worked(desk.updater().tick(once("fit", sleep_too_long)))
    assert others[0] is not None
    assert others[0].fence > (left.lease_fence or 0)
    assert (left.state, left.verdict, left.evaluations) == (WindowState.TRAINING, None, [])
    assert worlds.row_counts(desk.database) == counts[0]
    assert desk.published() == published
    assert desk.pointer().revision == 1
    assert desk.updater().tick() is None  # the other still holds the lease

    run_out(desk.database)
    taken = worked(desk.updater().tick())
    assert (taken.window_id, taken.attempts, taken.verdict) == (left.window_id, 2, "promoted")


def test_of_two_updaters_one_works(desk: Desk, built: BuiltBase) -> None:
    meanwhile: list[Window | None] = []
    second = desk.updater()
    desk.send(worlds.later_walks())
    window = worked(desk.updater().tick(once("fit", lambda: meanwhile.append(second.tick()))))
    assert meanwhile == [None]
    assert (window.verdict, window.attempts) == ("promoted", 1)
    assert second.tick() is None


def test_work_by_hand_is_refused_while_another_updater_works(desk: Desk, built: BuiltBase) -> None:
    def by_hand() -> None:
        with pytest.raises(Conflict, match="another updater is at work"):
            desk.updater().close_and_work(None)

    desk.send(worlds.later_walks())
    assert worked(desk.updater().tick(once("fit", by_hand))).verdict == "promoted"


def test_work_by_hand_closes_the_window_and_works_until_nothing_waits(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks())
    desk.close()
    desk.send(worlds.later_walks(2))
    middle = open_range(desk.database, None).after_seq + 300
    done = desk.updater().close_and_work(middle)
    assert [(w.sealed_because, w.events, w.verdict) for w in done] == [
        (SealedBecause.MANUAL, EVENTS, "promoted"),
        (SealedBecause.MANUAL, 300, "promoted"),
    ]
    assert open_range(desk.database, None) == Range(middle, middle + 60)
    assert desk.updater().close_and_work(middle) == []


def test_an_update_that_is_stopped_half_way_is_taken_up_again(desk: Desk, built: BuiltBase) -> None:
    def stop() -> None:
        raise Stopped("the updater was stopped")

    desk.send(worlds.later_walks())
    for _ in range(desk.settings.window_attempts + 1):  # to be told to stop is no failure
        left = worked(desk.updater().tick(once("fit", stop)))
        assert (left.state, left.reason, left.attempts) == (WindowState.FAILED, "the updater was stopped", 0)
        assert left.candidate_version is None
        desk.clock.advance(seconds=1)
    again = worked(desk.updater().tick())
    assert (again.window_id, again.verdict, again.attempts) == (left.window_id, "promoted", 1)


def test_a_window_is_not_skipped_because_another_base_is_activated_meanwhile(
    desk: Desk, built: BuiltBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CatalogueFollower.refresh

    def refresh(follower: CatalogueFollower) -> CatalogueIndex:
        index = read(follower)
        other = NewBase("b-" + "0" * 16, "0" * 64)
        adapters.register_base(desk.database, desk.clock, other)
        adapters.activate_base(desk.database, desk.clock, other.base_id, actor="cli")
        return index

    desk.send(worlds.later_walks())
    monkeypatch.setattr(CatalogueFollower, "refresh", refresh)
    left = worked(desk.updater().tick())
    assert (left.state, left.attempts) == (WindowState.FAILED, 0)
    assert "another base was activated meanwhile" in (left.reason or "")


# Damage


@pytest.mark.parametrize("damaged", ["adapters/*/adapter_model.safetensors", "bases/*/model/model.safetensors"])
def test_a_damaged_artifact_fails_the_window_as_often_as_allowed_and_changes_nothing_else(
    desk: Desk, built: BuiltBase, damaged: str
) -> None:
    desk.damage(damaged)
    before = desk.published()
    desk.send(worlds.later_walks())
    updater = desk.updater()
    tried = [worked(updater.tick()) for _ in range(3)]
    assert [(w.state, w.attempts) for w in tried] == [(WindowState.FAILED, attempt) for attempt in (1, 2, 3)]
    assert len({w.window_id for w in tried}) == 1
    named = built.adapter_version if damaged.startswith("adapters") else built.base_id
    assert named in (tried[-1].reason or "")
    assert "refused" in (tried[-1].reason or "")
    assert (tried[-1].steps or [])[-1]["outcome"] == "failed"
    assert updater.tick() is None
    assert desk.published() == before
    assert (desk.pointer().adapter_version, desk.pointer().revision) == (built.adapter_version, 1)


def test_a_window_after_a_failed_one_is_trained_once_the_artifact_is_whole_again(desk: Desk, built: BuiltBase) -> None:
    desk.damage("adapters/*/adapter_model.safetensors")
    updater = desk.updater(window_attempts=1)
    desk.send(worlds.later_walks())
    assert worked(updater.tick()).verdict == "failed"
    desk.damage("adapters/*/adapter_model.safetensors")  # the same bit flipped back
    desk.send(worlds.later_walks(2))
    window = worked(updater.tick())
    assert (window.window_id, window.verdict) == (3, "promoted")


# Rehearsal, and what learning leaves behind


def test_a_rehearsal_learns_and_judges_and_writes_nothing(desk: Desk, built: BuiltBase) -> None:
    desk.send(worlds.later_walks())
    before, published = worlds.row_counts(desk.database), desk.published()
    update = desk.updater().rehearse(open_range(desk.database, None))
    assert update.verdict is WindowState.PROMOTED
    assert rehearsal_summary(update)["metrics"].keys() == {"candidate", "incumbent", "base", "popularity"}
    assert rehearsal_summary(update)["events"] == EVENTS
    assert worlds.row_counts(desk.database) == before
    assert desk.published() == published
    assert open_range(desk.database, None).through_seq - open_range(desk.database, None).after_seq == EVENTS
    with desk.database.read() as connection:
        assert connection.execute(sa.select(metadata.tables["leases"])).all() == []


def test_a_rehearsal_without_a_base_or_events_says_so(desk: Desk) -> None:
    update = desk.updater().rehearse(open_range(desk.database, None))
    assert update.verdict is WindowState.SKIPPED
    assert "adaptide base build" in (update.reason or "")


@pytest.mark.parametrize("where", ["evaluate before", "fit", "evaluate after"])
def test_an_update_that_hangs_loses_its_window_to_another_updater_and_writes_nothing_more(
    desk: Desk, built: BuiltBase, where: str
) -> None:
    now, hangs, goes_on = [0.0], threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        assert goes_on.wait(120)

    lease = timedelta(seconds=3)  # renewed each second, also while it hangs
    first = desk.updater(lambda: now[0], lease_duration=lease, update_silence=timedelta(minutes=50))
    second = desk.updater(lease_duration=lease, learning_rate_update=1.1e-2)  # its adapter would be another one
    desk.send(worlds.later_walks())
    silent = SILENT._value.get()
    with ThreadPoolExecutor(1) as aside, structlog.testing.capture_logs() as told:
        stuck = aside.submit(first.tick, once(where, hang))
        try:
            assert hangs.wait(120)
            now[0] = 3_000.0
            time.sleep(lease.total_seconds() + 1)
            assert second.tick() is None  # 50 minutes are not more than 50 minutes

            now[0] = 3_001.0
            worlds.eventually(lambda: SILENT._value.get() == silent + 1, 60)
            taken: list[Window] = []
            worlds.eventually(lambda: taken.extend(filter(None, [second.tick()])) or bool(taken), 60)
            published = desk.published()
        finally:
            goes_on.set()
        left = worked(stuck.result(120))

    [window] = taken
    assert (window.window_id, window.attempts, window.verdict) == (2, 2, "promoted")
    assert left == window == windows.read_window(desk.database, 2)
    assert desk.published() == published == {built.adapter_version, window.candidate_version}
    [error] = [line for line in told if line["log_level"] == "error"]
    assert (error["event"], error["window_id"], error["seconds"]) == ("update_silent", 2, 3_001)
    [word] = [line for line in told if line["event"] == "window_left"]
    assert "no progress for 3000 s" in word["reason"]
    desk.send(worlds.later_walks(2))
    assert worked(first.tick()).verdict == "promoted"  # it works again


def test_the_reports_of_an_update_come_also_from_within_its_evaluations(desk: Desk, built: BuiltBase) -> None:
    seen: list[tuple[str, int, int]] = []
    desk.send(worlds.later_walks())

    worked(desk.updater(evaluation_items_per_user=3).tick(lambda *said: seen.append(said)))

    told = {step: [said[1:] for said in seen if said[0] == step] for step, _, _ in seen}
    # 60 test and 180 prequential cases in batches of 64, of the base and of the incumbent
    assert told["evaluate before"] == [(0, 2)] * 5 + [(1, 2)] * 5 + [(2, 2)]
    assert told["evaluate after"] == [(0, 1)] * 2 + [(1, 1)]
    assert told["fit"][0] == (0, 1)  # from the validation of the starting point


def backbone_of(desk: Desk, built: BuiltBase) -> Backbone:
    folder = desk.settings.artifacts_dir / "bases" / built.base_id / "model"
    return load_backbone(folder, torch.device("cpu"), torch.float32)


@on_sqlite
@pytest.mark.parametrize("method", ["peso", "single-evolving"])
def test_learning_leaves_the_backbone_as_it_was(desk: Desk, built: BuiltBase, method: str) -> None:
    desk.send(worlds.later_walks())
    settings = desk.settings.model_copy(update={"method": method})
    index = CatalogueFollower(desk.database, settings.poll_interval).refresh()
    span = open_range(desk.database, None)
    data = load_streams(desk.database, settings, index, span.after_seq, span.through_seq)
    examples = build_examples(data.streams, history_items=20, min_events=5)
    backbone = backbone_of(desk, built)
    before = score_items(backbone, index.codes[:3], index.codes)
    modules = {name for name, _ in backbone.model.named_modules()}

    learnt = learn(
        backbone, None, make_method(settings), examples, (), index, np.zeros(worlds.ITEMS), settings, Steps()
    )

    assert learnt.candidate is not None
    assert {name for name, _ in backbone.model.named_modules()} == modules
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert score_items(backbone, index.codes[:3], index.codes).tolist() == before.tolist()


def test_a_window_is_learnt_as_of_its_own_time(desk: Desk, built: BuiltBase) -> None:
    """A later event that arrived after the seal is in the next window, whatever its occurred_at."""
    desk.send(worlds.later_walks())
    first = desk.close()
    early = datetime(2026, 2, 1, 23, tzinfo=UTC)
    desk.send([worlds.event("late", "u00", "i00", early)])
    window = worked(desk.updater().tick())
    assert (window.window_id, (window.statistics or {})["interactions"]) == (first.window_id, EVENTS)
    assert open_range(desk.database, None) == Range(first.through_seq, first.through_seq + 1)


# Limits


@on_sqlite
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"update_timeout": timedelta(microseconds=1)}, "more than 1e-06 s (ADAPTIDE_UPDATE_TIMEOUT)"),
        ({"update_memory_bytes": MIB}, "where 1 are allowed (ADAPTIDE_UPDATE_MEMORY_BYTES)"),
    ],
)
def test_an_update_that_takes_too_much_is_abandoned_and_given_up_and_later_windows_go_on(
    desk: Desk, built: BuiltBase, changes: dict[str, object], reason: str
) -> None:
    published = desk.published()
    updater = desk.updater(**changes)
    desk.send(worlds.later_walks())
    tried = [worked(updater.tick()) for _ in range(desk.settings.window_attempts)]
    assert [(w.state, w.attempts) for w in tried] == [(WindowState.FAILED, attempt) for attempt in (1, 2, 3)]
    assert all(reason in (window.reason or "") for window in tried)
    assert updater.tick() is None  # it is given up
    assert desk.published() == published
    assert desk.pointer().revision == 1
    desk.send(worlds.later_walks(2))
    window = worked(desk.updater().tick())
    assert (window.window_id, window.attempts, window.verdict) == (3, 1, "promoted")


@on_sqlite
@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60)])
def test_an_update_that_runs_out_of_memory_fails_and_the_same_updater_does_the_next_attempt(
    desk: Desk, built: BuiltBase, allocate: Callable[[], object]
) -> None:
    updater = desk.updater()
    desk.send(worlds.later_walks())
    failed = worked(updater.tick(once("fit", allocate)))
    assert (failed.state, failed.attempts) == (WindowState.FAILED, 1)
    assert "ran out of memory" in (failed.reason or "")
    again = worked(updater.tick())
    assert (again.window_id, again.attempts, again.verdict) == (failed.window_id, 2, "promoted")

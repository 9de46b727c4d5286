"""The one update path: seal -> claim -> fit -> evaluate -> gate -> publish -> promote, whole in one place, so long."""

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from safetensors import SafetensorError

from service.adapters import garbage
from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore, VerifiedBase
from service.adapters.bus import Announce, Change, nobody
from service.adapters.repository import NewAdapter
from service.catalog.follower import CatalogueFollower
from service.catalog.index import CatalogueIndex
from service.errors import AdaptideError, ArtifactError, Conflict, LeaseLost, Overtaken, PreconditionFailed
from service.generation.backbone import Backbone, pick_device
from service.kit.clock import Clock
from service.kit.crash_points import CrashPoint, crash_point
from service.kit.db import Database
from service.kit.ids import uuid7
from service.kit.lease_keeper import Pulse, held
from service.kit.leases import Lease
from service.settings import Promote, Settings
from service.tracing import NO_TRACES, Traces
from service.trials.promotion import Held, promote_if_held
from service.users import service as users
from service.users.service import Learners
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.service import UPDATER_LEASE, Outcome
from service.windows.states import SealedBecause, WindowState
from trainer import drift, reproduce
from trainer.checkpoints import kept_training
from trainer.evaluation import DEPTH, ndcg
from trainer.examples import build_examples, prequential_cases
from trainer.gate import Refusal, all_finite, judge
from trainer.language_model import load_trainable
from trainer.learn import Learnt, learn
from trainer.limits import Limits, why
from trainer.methods import make_method
from trainer.methods.base import Adapter
from trainer.outcome import Range, Serving, Update, counts, evaluations, learning, training_settings
from trainer.popularity import KeptPopularity
from trainer.processes import Together
from trainer.progress import Report, Stopped, silent
from trainer.retrain import write_adapter
from trainer.streams import load_streams
from trainer.telemetry import LEFT, SILENT, UPDATE_SECONDS, WINDOWS, WORKING, count_interactions
from trainer.together import adapting, require_shareable

KEPT = "window"
"""Kind of the updater's checkpoints: of the one window that is worked on."""

log = structlog.get_logger(__name__)


class Updater:
    """One process's updater. `tick` does what is due; only the holder of the lease works.

    tell: of a promotion. monotonic: seconds, for how long an update has shown no progress.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        clock: Clock,
        artifacts: ArtifactStore,
        tell: Announce = nobody,
        traces: Traces = NO_TRACES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._artifacts = artifacts
        self._tell = tell
        self._traces = traces
        self._monotonic = monotonic
        self._window_id: int | None = None
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid7()[-8:]}"
        self._catalogue = CatalogueFollower(database, settings.poll_interval)
        self._backbone: tuple[str, VerifiedBase, Backbone] | None = None
        self._popularity = KeptPopularity(database, settings)
        self._passed = WindowState.CANARY if settings.promote is Promote.CANARY else WindowState.PROMOTED
        self._method = make_method(settings)
        self._together = Together.of(settings)
        if self._together is not None:
            require_shareable(self._method.name)

    def tick(self, report: Report = silent) -> Window | None:
        """Seal what is due and bring one window to its outcome; None when there was nothing to do.

        While an earlier window's candidate is on trial nothing is sealed: what comes meanwhile is one window then, not
        many that wait for a trial each. Never raises for what one window does: its failure is in its row, and it is
        tried again while attempts are left.
        """
        settings, database, clock, pulse = self._settings, self._database, self._clock, self._pulse()
        with held(database, UPDATER_LEASE, self.owner, settings.lease_duration, pulse) as lease:
            if lease is None or self._waits_for_canary(lease):
                return None
            if (because := windows.due(database, clock, settings)) is not None:
                windows.seal(database, clock, settings, because, lease=lease)
            return self._next(lease, pulse, report)

    def close_and_work(self, through_seq: int | None, report: Report = silent) -> list[Window]:
        """Seal the open window by hand (None: all of it) and bring every waiting window to its outcome.

        What has to wait for a canary (service.trials.promotion.under_way) is left, unsealed if it was. Raises Conflict
        when another updater is at work.
        """
        settings, database, clock, pulse = self._settings, self._database, self._clock, self._pulse()
        with held(database, UPDATER_LEASE, self.owner, settings.lease_duration, pulse) as lease:
            if lease is None:
                raise Conflict("another updater is at work; it takes up closed windows by itself, or stop it first")
            if self._waits_for_canary(lease):
                return []
            windows.seal(
                database, clock, settings, SealedBecause.MANUAL, through_seq=through_seq, actor="cli", lease=lease
            )
            done: dict[int, Window] = {}
            while (window := self._next(lease, pulse, report, at_once=True)) is not None:
                done[window.window_id] = window  # a failed attempt is followed by the next one on the same window
                if self._waits_for_canary(lease):
                    break
            return list(done.values())

    def rehearse(self, span: Range, report: Report = silent) -> Update:
        """Learn from a range and judge the candidate; nothing is written, sealed or promoted."""
        update = Update()
        self._update(update, span, report, rehearsal=True)
        return update

    def _waits_for_canary(self, lease: Lease) -> bool:
        """Whether an earlier window's candidate is on trial: the next one is to learn from it, if it is promoted.

        Whatever ADAPTIDE_PROMOTE says by now: a canary that has begun is brought to its end.
        """
        duration = self._settings.canary_duration
        held = promote_if_held(self._database, self._clock, self._artifacts, duration, lease)
        if held is Held.PROMOTED:
            self._tell(Change.POINTER)
        return held is Held.WAITING

    def _pulse(self) -> Pulse:
        def give_up(silent: float) -> None:
            SILENT.inc()
            advice = "another updater may take the window over; restart this one, or set ADAPTIDE_UPDATE_SILENCE higher"
            log.error("update_silent", window_id=self._window_id, seconds=round(silent), advice=advice)

        return Pulse(self._settings.update_silence, give_up, self._monotonic)

    def _next(self, lease: Lease, pulse: Pulse, report: Report, *, at_once: bool = False) -> Window | None:
        pulse.beat()
        window = windows.claim(
            self._database, self._clock, self._settings, lease, method=self._method.name, at_once=at_once
        )
        self._window_id = None if window is None else window.window_id
        if window is None:
            return None
        named = {"adaptide.window_id": window.window_id, "adaptide.attempt": window.attempts}
        with WORKING.track_inprogress(), UPDATE_SECONDS.time(), self._traces.span("window", named) as say:
            self._work(window, lease, pulse, report)
            done = windows.read_window(self._database, window.window_id)
            say({"adaptide.state": done.state.value})
        WINDOWS.labels((done.lease_fence == lease.fence and done.verdict) or LEFT).inc()
        return done

    def _work(self, window: Window, lease: Lease, pulse: Pulse, report: Report) -> None:
        update, limits = Update(), Limits.of(self._settings)
        log.info("window_claimed", window_id=window.window_id, events=window.events, attempt=window.attempts)

        watched = limits.watching(report)

        def alive(step: str, done: int, total: int) -> None:
            pulse.beat()
            watched(step, done, total)

        def step_done() -> None:
            pulse.beat()
            windows.report_steps(self._database, window.window_id, lease, update.steps.rows)
            if update.verdict is None:  # what is judged is not thrown away for being late
                limits.check()

        update.steps.on_done, update.steps.around = step_done, self._traces.span
        try:
            self._update(update, Range(window.after_seq, window.through_seq), alive)
            crash_point(CrashPoint.JUDGED)
            self._conclude(window, lease, update)
        except LeaseLost as error:
            log.warning("window_left", window_id=window.window_id, reason=error.detail)
        except (Stopped, Overtaken, PreconditionFailed) as error:  # the window is not to blame
            self._fail(window, lease, update, error.detail, counted=False)
        except AdaptideError as error:
            self._fail(window, lease, update, error.detail)
        except Exception as error:  # whatever it was, the window must not stay in training without a word
            log.exception("window_update_crashed", window_id=window.window_id)
            self._fail(window, lease, update, why(error))

    def _fail(self, window: Window, lease: Lease, update: Update, reason: str, *, counted: bool = True) -> None:
        try:
            windows.fail(
                self._database,
                self._clock,
                self._settings,
                window.window_id,
                lease,
                reason,
                steps=update.steps.rows,
                counted=counted,
            )
        except AdaptideError as error:  # the next holder takes the window over when the lease has run out
            log.warning("failure_not_recorded", window_id=window.window_id, reason=error.detail)

    def _update(self, update: Update, span: Range, report: Report, *, rehearsal: bool = False) -> None:
        """From the range to a judged candidate; `update` is filled in step by step."""
        settings, steps = self._settings, update.steps
        with steps.step("catalogue") as row:
            index = self._catalogue.refresh()
            row |= {"outcome": "followed", "items": len(index.items)}
        with steps.step("examples") as row:
            serving = self._serving(index)
            if serving is None:
                row["outcome"] = "skipped"
                update.verdict, update.reason = WindowState.SKIPPED, "no base is active: run `adaptide base build`"
                return
            with self._database.read() as connection:
                erasures = users.count_erasures(connection)
            data = load_streams(self._database, settings, index, span.after_seq, span.through_seq)
            update.learners = Learners(tuple(stream.user_id for stream in data.streams), erasures)
            examples = build_examples(
                data.streams,
                history_items=settings.history_items,
                min_events=settings.min_events_per_user,
                user_share=settings.window_max_user_share,
                user_targets=settings.window_max_events_per_user,
                repeats=settings.window_max_repeats,
            )
            update.serving, update.newest = serving, data.newest
            update.basis = reproduce.basis(settings, index, examples, serving.backbone.device)
            update.statistics = counts(data, examples)
            row |= {"outcome": "built", **update.statistics}
            if not rehearsal:
                count_interactions(data, examples)
        if not examples.learnable:
            update.verdict = WindowState.SKIPPED
            update.reason = (
                f"no user has {settings.min_events_per_user} events with known items in it, new ones among them"
            )
            return
        with steps.step("popularity") as row:
            ranking = self._popularity.by_row(index, span.after_seq, keep=not rehearsal, on_count=report)
            row["outcome"] = "counted"
        with steps.step("drift") as row:
            moved = drift.measure(self._database, settings, index, span.after_seq, span.through_seq, ranking).as_json()
            update.statistics |= moved
            row |= {"outcome": "measured", **moved}
        prequential = prequential_cases(
            data.streams,
            history_items=settings.history_items,
            per_user=settings.evaluation_items_per_user,
            users=settings.evaluation_users,
            seed=settings.seed,
        )
        subject = f"{serving.base.digest} {serving.pointer.adapter_version} {span.after_seq}-{span.through_seq}"
        kept = None if rehearsal else kept_training(settings, KEPT, subject)
        learnt = learn(
            serving.backbone,
            serving.incumbent,
            self._method,
            examples,
            prequential,
            index,
            ranking,
            settings,
            steps,
            report,
            adapting(self._together, serving.base.path / "model", kept),
        )
        update.learnt = learnt
        update.statistics |= learning(learnt)
        if learnt.candidate is None:
            update.verdict = WindowState.NO_CHANGE
            update.reason = "no epoch was better on validation than what serves"
            return
        with steps.step("gate") as row:
            update.gate = judge(
                ndcg(learnt.ranks["candidate"], DEPTH),
                ndcg(learnt.ranks["incumbent"], DEPTH),
                weights_finite=all_finite({name: tensor.numpy() for name, tensor in learnt.candidate.tensors.items()}),
                min_users=settings.gate_min_users,
                tolerance=settings.gate_tolerance,
                confidence=settings.gate_confidence,
                seed=settings.seed,
            )
            update.verdict = self._passed if update.gate.passed else WindowState.REFUSED
            update.reason = ", ".join(update.gate.reasons) or None
            row["outcome"] = "passed" if update.gate.passed else "refused"

    def _conclude(self, window: Window, lease: Lease, update: Update) -> None:
        """Publish the candidate if there is one, and write the window's one outcome."""
        assert update.verdict is not None  # noqa: S101  # _update always decides
        candidate = None
        learnt, serving = update.learnt, update.serving
        if learnt and serving and update.gate and Refusal.NON_FINITE_WEIGHTS not in update.gate.reasons:
            with update.steps.step("publish") as row:
                with self._database.write() as connection:  # asked again with the outcome; here before files are
                    windows.require_claimed(connection, window.window_id, lease)
                    if update.learners is not None:
                        users.require_none_erased(connection, update.learners)
                candidate = self._publish(window, update, learnt, serving)
                row["outcome"] = candidate.adapter_version
            crash_point(CrashPoint.PUBLISHED)
        outcome = Outcome(
            verdict=update.verdict,
            reason=update.reason,
            candidate=candidate,
            incumbent_version=serving.pointer.adapter_version if serving else None,
            evaluations=evaluations(update, candidate),
            steps=update.steps.rows,
            statistics=update.statistics,
            learners=update.learners,
        )
        moved = windows.conclude(
            self._database,
            self._clock,
            self._artifacts,
            window.window_id,
            lease,
            outcome,
            expected_revision=serving.pointer.revision if serving else None,
            canary_share=self._settings.canary_share,
        )
        if moved is not None:
            self._tell(Change.POINTER)
        elif outcome.verdict is WindowState.CANARY:
            self._tell(Change.TRIAL)
        if (kept := kept_training(self._settings, KEPT, "")) is not None:
            kept.clear()
        if candidate is not None and self._settings.artifacts_collect:
            self._collect(lease)

    def _collect(self, lease: Lease) -> None:
        """Delete what nobody needs; under the updater's lease, so nothing is being published meanwhile."""
        settings = self._settings
        try:
            garbage.collect(
                self._database,
                self._clock,
                self._artifacts,
                keep=settings.artifacts_keep,
                grace=settings.artifacts_grace,
                attempts=settings.window_attempts,
                actor="updater",
                lease=lease,
            )
        except AdaptideError as error:  # the window has its outcome; the next collection does it
            log.warning("artifacts_not_collected", reason=error.detail)

    def _publish(self, window: Window, update: Update, learnt: Learnt, serving: Serving) -> NewAdapter:
        settings, adapter = self._settings, learnt.candidate
        assert adapter is not None  # noqa: S101  # asked by _conclude
        hyperparameters = training_settings(learnt, settings, update.basis)
        metadata = {
            "base_id": serving.base.base_id,
            "method": self._method.name,
            "parent_version": serving.pointer.adapter_version,
            "window": {"window_id": window.window_id, "after_seq": window.after_seq, "through_seq": window.through_seq},
            "hyperparameters": hyperparameters,
        }
        with tempfile.TemporaryDirectory(prefix="adaptide-") as folder:
            try:
                write_adapter(Path(folder), adapter, serving.base, settings)
            except (OSError, SafetensorError) as error:
                raise ArtifactError(f"the adapter could not be written to {folder}: {error}") from error
            published = self._artifacts.publish_adapter(Path(folder), metadata, window.window_id)
        return NewAdapter(
            adapter_version=published.id,
            base_id=serving.base.base_id,
            digest=published.digest,
            method=self._method.name,
            parent_version=serving.pointer.adapter_version,
            window_id=window.window_id,
            hyperparameters=hyperparameters,
            metrics=learnt.metrics("candidate").as_dict(),
            trained_through=update.newest,
        )

    def _serving(self, index: CatalogueIndex) -> Serving | None:
        """The verified base and adapter that the pointer names; None without a base.

        Raises Overtaken when another base was activated since `index` was read.
        """
        with self._database.read() as connection:
            pointer = adapters.read_pointer(connection)
            base_row = adapters.find_base(connection, pointer.base_id) if pointer.base_id else None
            version = pointer.adapter_version
            adapter_row = adapters.find_adapter(connection, version) if version else None
        if base_row is None:
            return None
        if index.base_id != pointer.base_id:
            raise Overtaken(windows.ANOTHER_BASE)
        if self._backbone is None or self._backbone[0] != base_row.base_id:
            verified = self._artifacts.open_base(base_row.base_id, base_row.digest)
            device = pick_device(self._settings.device)
            self._backbone = (base_row.base_id, verified, load_trainable(verified.path / "model", device))
        _, verified, backbone = self._backbone
        incumbent = None
        if adapter_row is not None:
            opened = self._artifacts.open_adapter(adapter_row.adapter_version, adapter_row.digest, verified)
            state = self._artifacts.read_state(opened)
            incumbent = Adapter.of(opened.tensors, opened.config, adapter_row.method, state)
        return Serving(pointer, verified, backbone, incumbent)

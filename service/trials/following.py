"""Follows the trial: loads its candidate beside the active model, lends it to batches, and drops it at the end.

Whatever goes wrong with a candidate, control answers everybody here, `status()` says why, and no request fails.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from service.adapters import repository as adapters
from service.adapters.lending import Lending
from service.adapters.repository import Adapter, Pointer
from service.errors import AdaptideError, ArtifactError, StoreUnavailable, Unavailable
from service.generation.engine import ServedModel
from service.kit.allocator import give_back_freed_memory
from service.kit.backoff import Backoff
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.poller import Poller
from service.kit.priority import give_way
from service.telemetry import TRIAL_FAILURES, TRIAL_LOADED
from service.trials import repository, states
from service.trials import service as trials
from service.trials.live import LiveTrial
from service.trials.states import Trial

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 2.0  # a candidate that could not be loaded is tried again after this, then half as often each time
LONGEST_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """What this replica does of the trial. loaded: the candidate in memory. trouble: why it is not, when it should."""

    revision: int = 0
    loaded: str | None = None
    trouble: str | None = None


class TrialFollower:
    """One per process. start() and stop() once each; everything else from any thread."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        load: Callable[[Adapter], ServedModel],
        poll_interval: timedelta,
        *,
        no_second: Callable[[], str | None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """load: see Activation.load_beside. no_second: why the engine holds no second model, None where it does."""
        self._database, self._clock, self._load, self._no_second = database, clock, load, no_second
        self._poller = Poller("trial", poll_interval, self._follow)
        self._refreshing = threading.Lock()
        self._lending = Lending()
        self.lease_candidate = self._lending.lease
        self._live: LiveTrial | None = None
        self._status = TrialStatus()
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S, monotonic)
        self._given_up: int | None = None  # the revision whose candidate failed at answering
        self._tried = False
        self._slow = False

    def start(self) -> None:
        self._poller.start()

    def notify(self) -> None:
        """Look at the store now, without waiting for the next poll."""
        self._poller.notify()

    def stop(self) -> None:
        self._poller.stop()
        self._live = None
        self._lending.stop()

    def live(self) -> LiveTrial | None:
        """The trial whose candidate is in memory; None, as nearly always, when there is nothing to do for one."""
        return self._live

    def status(self) -> TrialStatus:
        return self._status

    def failed(self, error: Exception) -> None:
        """The candidate could not answer what control could: it is dropped here until somebody changes the trial."""
        live = self._live
        if live is None:
            return
        self._given_up, self._live = live.revision, None
        self._trouble(f"it failed at answering ({type(error).__name__}); see the log")
        log.error("trial_suspended", adapter_version=live.adapter_version, reason=type(error).__name__)
        self.notify()

    def _follow(self) -> None:
        if not self._slow:  # this thread only ever works beside somebody who is answered
            give_way()
            self._slow = True
        self.refresh()

    def refresh(self) -> TrialStatus:
        """Bring what is in memory in line with the store. Never raises for what a store, a file or an engine does."""
        with self._refreshing:
            try:
                self._refresh()
            except StoreUnavailable:  # who answers whom stays as it is, but for an end that was known before
                live = self._live
                if live is not None and live.ends_at is not None and self._clock() >= live.ends_at:
                    self._drop(live.revision)
            except Exception as error:  # the thread must outlive any engine
                log.exception("trial_crashed")
                self._trouble(f"{type(error).__name__} while following the trial; see the log")
            return self._status

    def _refresh(self) -> None:
        with self._database.read() as connection:
            latest = repository.latest(connection)
            trial = None if latest is None else latest.trial
            if latest is not None and trial is not None:
                pointer = adapters.read_pointer(connection)
                candidate = adapters.find_adapter(connection, trial.adapter_version)
        if latest is None or trial is None:
            self._drop(0 if latest is None else latest.revision)
            return
        assert candidate is not None  # noqa: S101  # foreign keys
        if states.over(trial, pointer, candidate.state, self._clock()) is not None:
            self._drop(latest.revision)  # before it is written: an end takes effect without the store, too
            trials.end_if_over(self._database, self._clock)
            return
        self._hold(latest.revision, trial, candidate, pointer)

    def _hold(self, revision: int, trial: Trial, candidate: Adapter, pointer: Pointer) -> None:
        if revision == self._given_up:
            self._drop(revision, keep_trouble=True)
            return
        if revision != self._status.revision:
            self._tried = False
            self._backoff.reset()
        model = self._lending.model
        if model is None or (model.base_id, model.adapter_version) != (trial.base_id, trial.adapter_version):
            self._drop(revision, keep_trouble=revision == self._status.revision)
            if (self._tried and self._backoff.pause_s) or not self._bring(revision, candidate):
                return
        live = LiveTrial(
            revision=revision,
            kind=trial.kind,
            base_id=trial.base_id,
            adapter_version=trial.adapter_version,
            share=trial.share,
            salt=trial.salt,
            ends_at=trial.ends_at,
            trained_through=candidate.trained_through,
        )
        if live != self._live:
            self._live = live
            log.info("trial_live", adapter_version=trial.adapter_version, kind=trial.kind.value, revision=revision)
        self._status = TrialStatus(revision, trial.adapter_version)

    def _bring(self, revision: int, candidate: Adapter) -> bool:
        """Load the candidate; whether it is there."""
        self._tried = True
        if (reason := self._no_second()) is None:
            try:
                model = self._load(candidate)
                self._lending.flip(model)
                TRIAL_LOADED.set(1)
                return True
            except Unavailable:  # the active model is being loaded itself: look again at the next poll
                self._tried = False
                return False
            except ArtifactError as error:  # a damaged one was marked, which has ended the trial
                reason = error.detail
            except AdaptideError:
                raise
            except Exception as error:  # an engine fails in its own ways: out of memory, a driver
                log.exception("trial_load_failed", adapter_version=candidate.adapter_version)
                reason = f"the engine could not load it ({type(error).__name__}); see the log"
        if reason != self._status.trouble:
            log.error("trial_suspended", adapter_version=candidate.adapter_version, reason=reason)
        self._backoff.failed()
        self._status = TrialStatus(revision)
        self._trouble(reason)
        return False

    def _drop(self, revision: int, *, keep_trouble: bool = False) -> None:
        self._live = None
        if self._lending.model is not None:
            self._lending.flip(None)
            TRIAL_LOADED.set(0)
            give_back_freed_memory()
        self._status = TrialStatus(revision, None, self._status.trouble if keep_trouble else None)

    def _trouble(self, reason: str) -> None:
        TRIAL_FAILURES.inc()
        self._status = TrialStatus(self._status.revision, None, reason)

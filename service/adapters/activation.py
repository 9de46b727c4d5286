"""Follows the active pointer: loads, warms, flips, drains, frees; over 300 lines, since all of it shares one state.

Requests borrow the model in service with `lease_model`; they never wait for a load. Whatever goes wrong with a new
model, the one before it goes on serving, and `status()` says so.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from service.adapters import repository, states
from service.adapters.artifacts import ArtifactStore, VerifiedAdapter, VerifiedBase
from service.adapters.integrity import mark_corrupt, require_adapter
from service.adapters.lending import Lending, close
from service.adapters.repository import Adapter, Base, Pointer
from service.adapters.states import Move
from service.errors import (
    AdaptideError,
    ArtifactError,
    ArtifactMissing,
    ArtifactUntrusted,
    Conflict,
    StoreUnavailable,
    Unavailable,
)
from service.generation.engine import Engine, ServedModel
from service.kit.allocator import give_back_freed_memory
from service.kit.backoff import Backoff
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.poller import Poller
from service.kit.priority import give_way
from service.telemetry import ACTIVATION_SECONDS, ACTIVATIONS, DEGRADED, SERVED_REVISION

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 2.0  # a model that could not be loaded is tried again after this, then half as often each time
LONGEST_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class ActivationStatus:
    """What this replica serves and how that stands to what it should.

    base_id None: no model serves. adapter_version None beside a base_id: the base alone. revision: the newest one that
    was acted upon. degraded: why something else serves than the pointer names; wanted_version is what that is.
    settled: the pointer was read at least once and acted upon, so that readiness need not wait any longer.
    """

    settled: bool = False
    base_id: str | None = None
    adapter_version: str | None = None
    revision: int | None = None
    trained_through: datetime | None = None
    since: datetime | None = None
    degraded: str | None = None
    wanted_base_id: str | None = None
    wanted_version: str | None = None
    store_reachable: bool = True


@dataclass(frozen=True, slots=True)
class _Target:
    base: Base
    adapter: Adapter | None

    @property
    def identity(self) -> tuple[str, str | None]:
        return self.base.base_id, self.adapter.adapter_version if self.adapter else None

    @property
    def trained_through(self) -> datetime | None:
        """Of the newest part that knows."""
        return (self.adapter.trained_through if self.adapter else None) or self.base.trained_through


class Activation:
    """One per process. start() and stop() once each; everything else from any thread."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        artifacts: ArtifactStore,
        engine: Engine,
        poll_interval: timedelta,
        *,
        warm: Callable[[ServedModel], None] = lambda model: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """warm: run on each new model before it serves, such as one small generation; a failure keeps it out."""
        self._database, self._clock, self._artifacts, self._engine = database, clock, artifacts, engine
        self._warm, self._monotonic = warm, monotonic
        self._poller = Poller("activation", poll_interval, self._follow)
        self._lock = threading.Lock()  # guards the status
        self._refreshing = threading.Lock()  # one load at a time
        self._lending = Lending()
        self.lease_model = self._lending.lease
        # Of the model in service. The engine keeps that base in memory, so a swap need not read it all again.
        self._verified: VerifiedBase | None = None
        self._status = ActivationStatus()
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S, monotonic)
        self._tried: int | None = None  # the revision that the latest attempt was for

    def start(self) -> None:
        self._poller.start()

    def notify(self) -> None:
        """Look at the pointer now, without waiting for the next poll."""
        self._poller.notify()

    def stop(self) -> None:
        """End the thread; the model is freed when its last user has left."""
        self._poller.stop()
        self._lending.stop()

    def status(self) -> ActivationStatus:
        with self._lock:
            return self._status

    def load_beside(self, adapter: Adapter) -> ServedModel:
        """Another adapter of the base in service, verified, loaded and warmed like any that serves; the caller's to
        close. Raises ArtifactError, Unavailable while another base serves, and what the engine raises."""
        with self._refreshing:
            base, held = self._verified, self.status()
            if base is None or held.base_id != adapter.base_id or base.base_id != adapter.base_id:
                raise Unavailable(f"base {adapter.base_id} does not serve here")
            return self._load(base, adapter)

    @contextmanager
    def beside(self, version: str) -> Iterator[ServedModel]:
        """An adapter of the base in service, verified and loaded beside it until the block ends, for a few searches.

        Nothing is swapped meanwhile, so never more is loaded than during a swap: keep the block short, and leave it
        when the pointer moves. Raises Conflict for an adapter that cannot be loaded, NotFound, ArtifactError.
        """
        with self._refreshing:
            base = self._verified
            if base is None or self._lending.model is None:
                raise Conflict("no model serves here, so there is nothing to load another one beside")
            with self._database.read() as connection:
                adapter = require_adapter(connection, version)
            if adapter.base_id != base.base_id:
                raise Conflict(f"adapter {version} is of base {adapter.base_id}; this process serves {base.base_id}")
            if adapter.state in states.GONE:
                raise Conflict(f"adapter {version} is {adapter.state.value}, so it cannot be loaded")
            model = self._engine.load(base, self._open(adapter, base))
            try:
                yield model
            finally:
                close(model)
                give_back_freed_memory()

    def _follow(self) -> None:
        held = self._lending.model
        if held is not None:  # from the first model on somebody may be answered while another one is loaded
            give_way()
        self.refresh()
        if held is not None and held is not self._lending.model:
            give_back_freed_memory()

    def refresh(self) -> ActivationStatus:
        """Bring what serves in line with the pointer. Never raises for what a store, a file or an engine does."""
        with self._refreshing:
            try:
                self._refresh()
            except StoreUnavailable:
                self._tried = None
                self._note(store_reachable=False)
            except Exception as error:  # the thread must outlive any engine
                log.exception("activation_crashed")
                self._fail(f"{type(error).__name__} while activating; see the log")
            return self.status()

    def _refresh(self) -> None:
        with self._database.read() as connection:
            pointer = repository.read_pointer(connection)
        self._note(store_reachable=True)
        if pointer.revision == self._tried:
            if self.status().degraded is None or self._backoff.pause_s:
                return
        else:
            self._tried = pointer.revision
            self._backoff.reset()
        if pointer.base_id is None:
            self._note(settled=True, revision=pointer.revision)
            return
        wanted = self._target(pointer.base_id, pointer.adapter_version)
        try:
            self._serve(wanted, pointer, degraded=None)
            self._backoff.reset()
        except ArtifactError as error:
            self._fall_back(wanted, pointer, error.detail)
        except AdaptideError:
            raise
        except Exception as error:  # an engine fails in its own ways: out of memory, a driver, a missing library
            log.exception("model_load_failed", base_id=pointer.base_id, adapter_version=pointer.adapter_version)
            self._fall_back(wanted, pointer, f"the engine could not load it ({type(error).__name__}); see the log")

    def _target(self, base_id: str, version: str | None) -> _Target:
        with self._database.read() as connection:
            base = repository.find_base(connection, base_id)
            adapter = None if version is None else repository.find_adapter(connection, version)
        assert base is not None  # noqa: S101  # foreign keys
        return _Target(base, adapter)

    def _fall_back(self, wanted: _Target, pointer: Pointer, reason: str) -> None:
        """Keep the model in service if it is of the wanted base; else the last good adapter, the base, or nothing."""
        held = self.status()
        log.error(
            "activation_failed", adapter_version=pointer.adapter_version, revision=pointer.revision, reason=reason
        )
        if self._lending.model is None or held.base_id != wanted.base.base_id:
            for target in self._good_before(wanted):
                try:
                    self._serve(target, pointer, degraded=reason)
                    break
                except ArtifactError as error:
                    log.error("fallback_failed", adapter_version=target.identity[1], reason=error.detail)
                except AdaptideError:
                    raise
                except Exception:  # as in _refresh
                    log.exception("fallback_failed", adapter_version=target.identity[1])
        self._note(
            revision=pointer.revision, wanted_base_id=wanted.base.base_id, wanted_version=pointer.adapter_version
        )
        self._fail(reason)

    def _good_before(self, wanted: _Target) -> list[_Target]:
        """What served before under the wanted base, latest first, ending with the base alone."""
        base_id, version = wanted.identity
        with self._database.read() as connection:
            moves = [Move(row.action, row.to_version) for row in repository.activations_of_base(connection, base_id)]
            adapter_states = repository.states_of(connection, base_id)
        good = [
            earlier
            for earlier in reversed(states.served_stack(moves)[:-1])
            if earlier not in (None, version) and adapter_states[earlier] in states.RESTORABLE
        ]
        latest_first = list(dict.fromkeys(good)) + ([None] if version is not None else [])
        return [self._target(base_id, earlier) for earlier in latest_first]

    def _serve(self, target: _Target, pointer: Pointer, *, degraded: str | None) -> None:
        """Verify, load, warm and flip. Raises ArtifactError, or what the engine raises; then nothing has changed."""
        base_id, version = target.identity
        status = ActivationStatus(
            settled=True,
            base_id=base_id,
            adapter_version=version,
            revision=pointer.revision,
            trained_through=target.trained_through,
            since=self._clock(),
            degraded=degraded,
            wanted_base_id=pointer.base_id,
            wanted_version=pointer.adapter_version,
        )
        held = self.status()
        if self._lending.model is not None and (held.base_id, held.adapter_version) == target.identity:
            self._note(revision=pointer.revision, degraded=degraded, wanted_base_id=base_id, wanted_version=version)
            SERVED_REVISION.set(pointer.revision)
            return
        began = self._monotonic()
        base = self._verified
        if base is None or (base.base_id, base.digest) != (base_id, target.base.digest):
            base = self._artifacts.open_base(base_id, target.base.digest)
        model = self._load(base, target.adapter)
        self._verified = base
        self._lending.flip(model, lambda: self._put(status))
        seconds = self._monotonic() - began
        ACTIVATIONS.labels("degraded" if degraded else "ok").inc()
        ACTIVATION_SECONDS.observe(seconds)
        SERVED_REVISION.set(pointer.revision)
        log.info(
            "model_activated", base_id=base_id, adapter_version=version, revision=pointer.revision, seconds=seconds
        )

    def _load(self, base: VerifiedBase, adapter: Adapter | None) -> ServedModel:
        model = self._engine.load(base, self._open(adapter, base))
        try:
            self._warm(model)
        except BaseException:
            model.close()
            raise
        return model

    def _open(self, adapter: Adapter | None, base: VerifiedBase) -> VerifiedAdapter | None:
        if adapter is None:
            return None
        try:
            return self._artifacts.open_adapter(adapter.adapter_version, adapter.digest, base)
        except (ArtifactMissing, ArtifactUntrusted):  # perhaps only out of reach from here, or keys are wrong here
            raise
        except ArtifactError as error:
            mark_corrupt(self._database, self._clock, adapter.adapter_version, error.detail, actor="service")
            raise

    def _put(self, status: ActivationStatus) -> None:
        with self._lock:
            self._status = status
            DEGRADED.set(int(status.degraded is not None))

    def _fail(self, reason: str) -> None:
        """Flag the failure and put the next attempt off, longer each time."""
        self._backoff.failed()
        ACTIVATIONS.labels("failed").inc()
        self._note(settled=True, degraded=reason)

    def _note(self, **changes: object) -> None:
        with self._lock:
            self._status = replace(self._status, **changes)  # type: ignore[arg-type]  # names are checked by replace
            DEGRADED.set(int(self._status.degraded is not None))

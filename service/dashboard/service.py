"""Sessions that a key is exchanged for, and what the first page shows."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.engine import Connection

from service.access import repository as access_keys
from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import moves
from service.adapters import repository as adapters_repository
from service.adapters import service as adapters
from service.adapters.activation import ActivationStatus
from service.audit import repository as audit
from service.dashboard import repository
from service.dashboard.schemas import IDLE, LIFETIME, Freshness, Now, RegistryShown, Session, Visitor
from service.dashboard.traffic import Traffic
from service.dashboard.window_words import Beside
from service.errors import Conflict, Unauthenticated
from service.events import repository as events
from service.kit import keys
from service.kit.clock import Clock
from service.kit.db import Database
from service.replicas import service as replicas
from service.settings import Settings
from service.trials import repository as trials
from service.windows import repository as windows_repository
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.schemas import WindowView
from service.windows.states import WindowState
from service.windows.waiting import read_waits

TOUCH_EVERY = timedelta(minutes=1)
SESSIONS_PER_KEY = 20
SHOWN = 20
WINDOWS_SHOWN = 5


class Sessions:
    """Safe to share between threads. Nothing is remembered here: each use asks the store, so all replicas agree."""

    def __init__(self, database: Database, clock: Clock, access: AccessService) -> None:
        self._database, self._clock, self._access = database, clock, access

    def open(self, token: str, earlier: str | None) -> str:
        """The secret of a new session for a key that may read; the session `earlier`, if any, ends.

        Raises Unauthenticated, the same for every reason; StoreUnavailable.
        """
        principal = self._access.authenticate(token, Scope.ADMIN)  # ADMIN: not from memory while the store is away
        if not principal.allows(Scope.READ):
            raise Unauthenticated("this key may not see the dashboard")
        secret, now = keys.new_session(), self._clock()
        with self._database.write() as connection:
            if earlier is not None:
                repository.delete(connection, keys.digest(earlier))
            repository.delete_ended(connection, created_before=now - LIFETIME, seen_before=now - IDLE)
            repository.insert(connection, keys.digest(secret), Session(principal.key_id, now, now))
            repository.delete_beyond(connection, principal.key_id, SESSIONS_PER_KEY)
            audit.append(connection, now=now, actor=principal.actor, action="session.open")
        return secret

    def visitor(self, secret: str) -> Visitor | None:
        """Whom a session acts for; None when there is none, it has ended or its key is no longer good.

        Raises StoreUnavailable.
        """
        digest, now = keys.digest(secret), self._clock()
        with self._database.read() as connection:
            session = repository.find(connection, digest)
            found = access_keys.find(connection, session.key_id) if session is not None else None
        if session is None or found is None or not session.usable(now) or not found[0].usable(now):
            return None
        if now - session.seen_at >= TOUCH_EVERY:
            with self._database.write() as connection:
                repository.touch(connection, digest, now)
        return Visitor(found[0].principal, keys.derived(secret, "csrf"))

    def close(self, secret: str, *, actor: str) -> None:
        """End a session; one that has ended already stays so."""
        with self._database.write() as connection:
            if repository.delete(connection, keys.digest(secret)):
                audit.append(connection, now=self._clock(), actor=actor, action="session.close")


def now(
    database: Database, clock: Clock, settings: Settings, serving: ActivationStatus, traffic: Traffic | None
) -> Now:
    """What serves and how fresh it is. Raises StoreUnavailable."""
    found = replicas.read_views(database, clock, settings)
    with database.read() as connection:
        pointer = adapters_repository.read_pointer(connection)
        latest = trials.latest(connection)
        newest = events.newest(connection)
        pending = windows_repository.bound_pending(connection)
        sealed, held = windows_repository.waiting(connection, settings.window_attempts)
    occurred_at, received_at = newest or (None, None)
    freshness = Freshness(
        learnt=serving.trained_through,
        stored=occurred_at,
        received=received_at,
        waiting=pending.events + held,
        windows=sealed,
    )
    return Now(clock(), serving, pointer, freshness, pending, traffic, found, None if latest is None else latest.trial)


def registry(database: Database, settings: Settings) -> RegistryShown:
    """The newest adapters and windows, and where a rollback of the pointer leads. Raises StoreUnavailable."""
    with database.read() as connection:
        found = adapters.read_registry_in(connection, limit=SHOWN)
        closed, _ = windows.read_closed(connection, limit=WINDOWS_SHOWN)
        latest = trials.latest(connection)
        beside = beside_windows(connection, settings, closed)
        try:
            back_to = moves.rollback_target(connection, found.pointer, None) or moves.BASE_TARGET
        except Conflict:  # nothing to go back to
            back_to = None
    shown = [WindowView.of(window, settings) for window in closed]
    trial = None if latest is None else latest.trial
    return RegistryShown(found.pointer, found.adapters, shown, beside, back_to, trial)


def beside_windows(connection: Connection, settings: Settings, shown: Sequence[Window]) -> Beside:
    """What has to be known beside these windows to say why each is what it is."""
    tried = {window.candidate_version for window in shown if window.state is WindowState.CANARY}
    return Beside(read_waits(connection, settings), trials.latest_of(connection, {one for one in tried if one}))

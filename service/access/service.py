"""API keys: create, list, rotate, revoke, and find out whom a token stands for."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog

from service.access import repository
from service.access.schemas import ApiKey, CreatedKey, Principal, Scope
from service.audit import repository as audit
from service.errors import (
    Conflict,
    FieldError,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)
from service.kit import keys
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.grouped import Grouped

MAX_NAME = 128
MAX_EXPIRES_IN = timedelta(days=3650)
MAX_GRACE = timedelta(days=90)
CACHE_SECONDS = 4.0  # a revoked key must be refused within 5 s, one slow look-up included
LATELY_SECONDS = 300.0  # so long ago, a good key's address is not judged by what else comes from it
TOUCH_EVERY = timedelta(minutes=1)
KeyUse = tuple[str, datetime]
"""A key_id, and when it was used."""
_CACHE_SIZE = 10_000
_REFUSAL = "a valid API key is needed: Authorization: Bearer KEY"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Verified:
    key: ApiKey
    at: float  # monotonic seconds


class AccessService:
    """Safe to share between threads."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        without_store: timedelta = timedelta(0),
        note_use: Callable[[KeyUse], object] | None = None,
    ) -> None:
        """without_store: how long a key that was good may go on reading while the store does not answer.

        note_use: stores when a key was last used, without anybody waiting for it; None: here and now.
        """
        self._database, self._clock, self._monotonic = database, clock, monotonic
        self._without_store_s = without_store.total_seconds()
        self._verified: dict[str, _Verified] = {}  # by digest of the token; tokens are not kept
        self._noted: dict[str, datetime] = {}  # by key: when a use was last to be noted
        self._note_use = note_use or (lambda use: note_uses(database, [use]))
        self._lock = threading.Lock()

    def create(
        self, name: str, scopes: frozenset[Scope], *, actor: str, expires_in: timedelta | None = None
    ) -> CreatedKey:
        """A new key. Raises InvalidRequest for an empty or unprintable name, no scope, or an expiry out of range."""
        _check(name, scopes, expires_in)
        made, digest = _make(name, scopes, self._clock(), expires_in)
        key, now = made.key, made.key.created_at
        with self._database.write() as connection:
            repository.insert(connection, key, digest)
            audit.append(
                connection,
                now=now,
                actor=actor,
                action="key.create",
                subject=key.key_id,
                details={"name": name, "scopes": sorted(scopes)},
            )
        return made

    def rotate(self, key_id: str, *, actor: str, grace: timedelta, expires_in: timedelta | None = None) -> CreatedKey:
        """A new key of the same name and scopes; the old one is refused once `grace` has passed (0: within 5 s).

        The new one lives as long as the old one was made for, or `expires_in`. Raises NotFound, Conflict for a key
        that is revoked, expired or was rotated before, InvalidRequest for a grace or an expiry out of range.
        """
        if not timedelta(0) <= grace <= MAX_GRACE:
            detail = f"the old key may stay good for 0 to {MAX_GRACE.days} days"
            raise InvalidRequest(detail, errors=[FieldError("/grace", "out_of_range", detail)])
        now = self._clock()
        with self._database.write() as connection:
            found = repository.find(connection, key_id, lock=True)
            if found is None:
                raise _unknown(key_id)
            old = found[0]
            if old.replaced_by is not None:
                raise Conflict(f"key {key_id} was rotated to {old.replaced_by} already; rotate that one")
            if not old.usable(now):
                raise Conflict(f"key {key_id} is no longer good; make a new one: adaptide keys create")
            if expires_in is None and old.expires_at is not None:
                expires_in = old.expires_at - old.created_at
            _check(old.name, old.scopes, expires_in)
            made, digest = _make(old.name, old.scopes, now, expires_in)
            until = min(now + grace, old.expires_at) if old.expires_at is not None else now + grace
            repository.insert(connection, made.key, digest)
            repository.replace(connection, key_id, made.key.key_id, until)
            details = {"replaced_by": made.key.key_id, "good_until": until.isoformat()}
            audit.append(connection, now=now, actor=actor, action="key.rotate", subject=key_id, details=details)
        self._forget(key_id)
        return made

    def list(self) -> Sequence[ApiKey]:
        """All keys, oldest first, revoked and expired ones too."""
        with self._database.read() as connection:
            return repository.every(connection)

    def find(self, key_id: str) -> ApiKey:
        """Raises NotFound."""
        with self._database.read() as connection:
            found = repository.find(connection, key_id)
        if found is None:
            raise _unknown(key_id)
        return found[0]

    def revoke(self, key_id: str, *, actor: str) -> ApiKey:
        """Refused everywhere within 5 s; revoking again changes nothing. Raises NotFound."""
        now = self._clock()
        with self._database.write() as connection:
            if repository.revoke(connection, key_id, now):
                audit.append(connection, now=now, actor=actor, action="key.revoke", subject=key_id)
            found = repository.find(connection, key_id)
        if found is None:
            raise _unknown(key_id)
        self._forget(key_id)
        return found[0]

    def remembered(self, token: str) -> Principal | None:
        """Whom `token` stands for, if that was looked up in the last 4 seconds. Never blocks."""
        return self._recall(keys.digest(token), CACHE_SECONDS)

    def was_good(self, token: str) -> bool:
        """Whether `token` was looked up and good in the last 5 minutes, or may still read without the store. Never
        blocks."""
        return self._recall(keys.digest(token), max(LATELY_SECONDS, self._without_store_s)) is not None

    def authenticate(self, token: str, needs: Scope = Scope.READ) -> Principal:
        """Whom `token` stands for. Raises Unauthenticated, the same for every reason; StoreUnavailable.

        While the store does not answer, a key that was good lately (`without_store`) may still read, and no more than
        that: losing the store must not stop recommendations. Everything else needs the store anyhow.
        """
        digest = keys.digest(token)
        if known := self._recall(digest, CACHE_SECONDS):
            return known
        key_id = keys.key_id_of(token)
        if key_id is None or len(key_id) > 32 or not key_id.isalnum():
            raise Unauthenticated(_REFUSAL)
        looked_up_at = self._monotonic()
        try:
            with self._database.read() as connection:
                found = repository.find(connection, key_id)
        except StoreUnavailable:
            if needs is Scope.READ and (known := self._recall(digest, self._without_store_s)):
                return known
            raise
        if found is None or not keys.matches(token, found[1]) or not found[0].usable(self._clock()):
            with self._lock:
                self._verified.pop(digest, None)
            raise Unauthenticated(_REFUSAL)
        self._remember(digest, _Verified(found[0], looked_up_at))
        self._touch(found[0])
        return found[0].principal

    def _forget(self, key_id: str) -> None:
        with self._lock:
            self._verified = {d: v for d, v in self._verified.items() if v.key.key_id != key_id}

    def _recall(self, digest: str, seconds: float) -> Principal | None:
        verified = self._verified.get(digest)
        if verified is None or self._monotonic() - verified.at > seconds or not verified.key.usable(self._clock()):
            return None
        return verified.key.principal

    def _remember(self, digest: str, verified: _Verified) -> None:
        with self._lock:
            if len(self._verified) >= _CACHE_SIZE:
                self._verified.clear()
            self._verified[digest] = verified

    def _touch(self, key: ApiKey) -> None:
        now = self._clock()
        with self._lock:
            noted = self._noted.get(key.key_id, key.last_used_at)
            if noted is not None and now - noted < TOUCH_EVERY:
                return
            self._noted[key.key_id] = now
        self._note_use((key.key_id, now))


def note_uses(database: Database, uses: Sequence[KeyUse]) -> list[None]:
    """Store them; bookkeeping must neither refuse a request nor hold it up, so what cannot be stored is left."""
    try:
        with database.write() as connection:
            for key_id, at in uses:
                repository.touch(connection, key_id, at)
    except StoreUnavailable as error:
        log.warning("key_use_not_noted", key_ids=sorted({key_id for key_id, _ in uses}), detail=error.detail)
    return [None] * len(uses)


def key_use_writer(database: Database) -> Grouped[KeyUse, None]:
    """Notes uses beside the requests: SQLite's lock may be another's for seconds."""
    return Grouped("key-use-writer", partial(note_uses, database), most=64, max_queued=1_024)


def noting(writer: Grouped[KeyUse, None]) -> Callable[[KeyUse], None]:
    """For AccessService: what finds no room is left."""

    def note(use: KeyUse) -> None:
        with suppress(Unavailable):
            writer.ask(use)

    return note


def _make(name: str, scopes: frozenset[Scope], now: datetime, expires_in: timedelta | None) -> tuple[CreatedKey, str]:
    """A key that is not stored yet, and its digest."""
    new = keys.new_key()
    key = ApiKey(new.key_id, name, scopes, now, now + expires_in if expires_in else None, None, None)
    return CreatedKey(key, new.token), new.digest


def _unknown(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id!r}; `adaptide keys list` shows them")


def _check(name: str, scopes: frozenset[Scope], expires_in: timedelta | None) -> None:
    errors = []
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        errors.append(FieldError("/name", "invalid_name", f"a name has 1 to {MAX_NAME} printable characters"))
    if not scopes:
        errors.append(FieldError("/scopes", "missing", "a key needs at least one scope: read, write, admin"))
    if expires_in is not None and not timedelta(0) < expires_in <= MAX_EXPIRES_IN:
        errors.append(FieldError("/expires_in", "out_of_range", f"a key expires in 1 to {MAX_EXPIRES_IN.days} days"))
    if errors:
        raise InvalidRequest("; ".join(error.detail for error in errors), errors=errors)

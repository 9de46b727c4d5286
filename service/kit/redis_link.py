"""One process's link to Redis: short timeouts, a breaker that one thread closes again, an epoch for what is kept there.

Nobody waits for a Redis that is away: the first call that fails opens the breaker, later ones are refused at once, and
only the link's own thread tries again, with growing pauses. Nobody trusts a Redis that has come back: see `epoch_key`.
"""

import hashlib
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import structlog

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from redis import Redis

R = TypeVar("R")

OLDEST = 7  # major version of Redis
FIRST_PAUSE_S = 0.1  # before the link tries again; twice as long each time
LONGEST_PAUSE_S = 3.0  # so that what came back is used again within 10 s
HEARTBEAT_S = 1.0  # between pings while nothing is wrong
CONNECT_S = 0.5  # of a new connection: a few round trips, more with TLS
PATIENT_S = 2.0  # time of a call that no request waits for
SCHEMES = ("redis", "rediss", "unix")

ADOPT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], ARGV[2])
end
return 1
"""

log = structlog.get_logger(__name__)


class RedisAway(Exception):
    """Redis did not do it. Raised by RedisLink alone; whoever calls does without."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """up, and in one word why not (connecting, unreachable, refused, too_old); detail: what to do about it."""

    up: bool
    word: str
    detail: str | None = None


class RedisLink:
    """Safe to share between threads. start() and stop() once each; a short command calls connect() instead of start().

    Keys begin with `prefix`. Two of them are the link's own: `epoch_key` holds a token that changes whenever something
    kept in Redis may be older than it looks, namely when another server (or the same one, started again) answers, and
    when a process could not say that something had changed (`distrust`). Whoever keeps something writes the token
    beside it, and reads it as absent under another token. A missing token is made anew by the reader.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "adaptide",
        timeout: timedelta = timedelta(seconds=0.1),
        on_state: Callable[[bool], None] = lambda up: None,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        """timeout: of one answer. on_state: told when the breaker closes (True) and opens. on_error: told each failure.

        Connects to nothing yet. Raises ConfigurationError for a wrong URL or a missing client.
        """
        self._redis = _client_library()
        self.failures: tuple[type[Exception], ...] = (self._redis.RedisError, OSError)
        # One of the client's own errors, so that it closes the connection.
        self._too_old: type[Exception] = type("TooOld", (self._redis.RedisError,), {})
        self._url, self.prefix = url, prefix
        self._on_state, self._on_error = on_state, on_error
        self._quick = self._client(timeout.total_seconds())
        self._patient = self._client(PATIENT_S)
        self._state = LinkState(False, "connecting", "Redis was not reached yet")
        self._lock = threading.Lock()
        self._missed, self._made_up_for = 0, 0
        self._refusal: str | None = None  # the latest
        self._lost = threading.Event()
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis-link", daemon=True)

    def key(self, *parts: str) -> str:
        return ":".join((self.prefix, *parts))

    @property
    def epoch_key(self) -> str:
        return self.key("epoch")

    @property
    def up(self) -> bool:
        return self._state.up

    def state(self) -> LinkState:
        return self._state

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._lost.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._quick.close()
        self._patient.close()

    def wait_until_tried(self, seconds: float) -> bool:
        """Wait for the first attempt to connect, `seconds` at most; whether it succeeded."""
        self._tried.wait(seconds)
        return self.up

    def run(self, do: "Callable[[Redis], R]", *, patient: bool = False) -> R:
        """What `do` makes of the client. Raises RedisAway at once while the breaker is open, and when `do` fails.

        patient: with a longer timeout, for a thread that no request waits for.
        """
        if not self._state.up:
            raise RedisAway(self._state.word)
        try:
            return do(self._patient if patient else self._quick)
        except self._redis.ResponseError as error:  # it answers, and will not do this
            self._on_error()
            if self._refusal != (why := _brief(error)):  # once, not for each request
                self._refusal = why
                log.warning("redis_refused", error=why)
            raise RedisAway(why) from error
        except self.failures as error:
            self._on_error()
            self._open(self._explained(error))
            raise RedisAway(_brief(error)) from error

    def script(self, text: str, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """What a Lua script returns, in one round trip once the server knows it. Raises RedisAway."""
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

        def do(client: "Redis") -> Any:
            try:
                return client.evalsha(sha, len(keys), *keys, *args)
            except self._redis.exceptions.NoScriptError:
                return client.eval(text, len(keys), *keys, *args)

        return self.run(do)

    def distrust(self) -> None:
        """Note that others did not hear what they had to: once Redis answers, nobody trusts what was kept before.

        Until then the breaker stays open.
        """
        with self._lock:
            self._missed += 1
        if self.up:
            self._open(LinkState(False, "connecting", "what Redis holds is being given up"))

    def pubsub(self) -> Any:  # the client's own types end here
        """A redis.client.PubSub on a connection of its own; whatever is done with it may raise one of `failures`."""
        subscription: Callable[[], Any] = self._patient.pubsub
        return subscription()

    def connect(self) -> bool:
        """Try now; whether the link is up afterwards. Never raises."""
        try:
            # To be used again it must be quick; while it is used, a slow moment is for those to judge who wait for it.
            (self._patient if self.up else self._quick).ping()
            with self._lock:
                missed = self._missed
            if missed > self._made_up_for:
                self._quick.set(self.epoch_key, new_token())
                self._made_up_for = missed
        except self.failures as error:
            self._open(self._explained(error))
        else:
            self._close()
        self._tried.set()
        return self._state.up

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            self._lost.clear()
            if self.connect() and not self._lost.wait(HEARTBEAT_S):
                pause = FIRST_PAUSE_S
                continue
            # Jitter: replicas lost Redis together. One that answers only this thread is tried less and less often, too.
            self._stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _open(self, state: LinkState) -> None:
        with self._lock:
            before, self._state = self._state, state
        if before.word != state.word:
            log.warning("redis_away", state=state.word, detail=state.detail)
        if before.up:
            self._on_state(False)
            self._lost.set()

    def _close(self) -> None:
        with self._lock:
            if self._missed > self._made_up_for:  # meanwhile: the next attempt makes up for it
                return
            was_up, self._state = self._state.up, LinkState(True, "ok")
        if not was_up:
            log.info("redis_connected")
            self._on_state(True)

    def _client(self, timeout_s: float) -> "Redis":
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        _check_url(self._url)
        try:
            made: Redis = self._redis.Redis.from_url(
                self._url,
                protocol=2,
                socket_timeout=timeout_s,
                socket_connect_timeout=max(timeout_s, CONNECT_S),
                retry=Retry(NoBackoff(), 0),  # the breaker is the retry
                driver_info=None,
                redis_connect_func=self._greet,
            )
            # An option in the URL that no connection takes would be found at the first attempt to connect only.
            made.connection_pool.connection_class(**made.connection_pool.connection_kwargs)
        except (ValueError, TypeError):
            raise _wrong_url() from None  # their text may hold a piece of the password
        return made

    def _greet(self, connection: Any) -> None:
        """On every new connection: which server is this, is it new enough, and is it the one that was here before?"""
        connection.on_connect()
        connection.send_command("INFO", "server")
        answer = connection.read_response()
        lines = (answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)).splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        version = found.get("redis_version", "?")
        major = version.split(".")[0]
        if not major.isdecimal() or int(major) < OLDEST:
            raise self._too_old(version)
        keys = (self.key("server"), self.epoch_key)
        connection.send_command("EVAL", ADOPT, len(keys), *keys, found.get("run_id", "unknown"), new_token())
        connection.read_response()

    def _explained(self, error: Exception) -> LinkState:
        redis, why = self._redis, _brief(error)
        if isinstance(error, self._too_old):
            return LinkState(False, "too_old", f"Redis {why} answers; {OLDEST}.0 or newer is needed")
        if isinstance(error, redis.AuthenticationError):
            return LinkState(False, "refused", f"Redis refuses the user or password of ADAPTIDE_REDIS_URL: {why}")
        if isinstance(error, redis.ResponseError):
            return LinkState(False, "refused", f"Redis answers and will not work for this user: {why}")
        return LinkState(False, "unreachable", f"Redis does not answer: {why}")


def new_token() -> str:
    """A token that nobody has had before."""
    return secrets.token_hex(12)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        number, _ = parts.path.strip("/"), parts.port
    except ValueError:
        raise _wrong_url() from None
    if parts.scheme not in SCHEMES or not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise _wrong_url()
    if parts.scheme != "unix" and number and not number.isdecimal():
        raise _wrong_url()


def _wrong_url() -> ConfigurationError:
    return ConfigurationError(
        "ADAPTIDE_REDIS_URL is no Redis URL; write redis://[[USER]:PASSWORD@]HOST[:PORT][/NUMBER], rediss:// for TLS, "
        "or unix:///PATH; characters such as @ : / in a password are written as %40 %3A %2F"
    )


def _client_library() -> Any:
    try:
        import redis
    except ModuleNotFoundError as error:
        raise ConfigurationError("ADAPTIDE_REDIS_URL needs the client: pip install 'adaptide[redis]'") from error
    return redis


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

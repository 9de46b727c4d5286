"""What the replicas of one deployment share through Redis; without ADAPTIDE_REDIS_URL, nothing, and all works alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from service.adapters.bus import Announce, Bus, Change, announce, nobody
from service.events.schemas import Event
from service.health import PartState
from service.http.rate_limit import RateLimiter
from service.kit.redis_link import RedisLink
from service.recommend import answer_cache
from service.recommend.answer_cache import AnswerCache
from service.recommend.past_cache import PastCache
from service.recommend.popularity_cache import SharedCounts
from service.settings import Settings
from service.telemetry import REDIS_ERRORS, REDIS_UP


@dataclass(frozen=True, slots=True)
class Shared:
    """None, and functions that do nothing, where there is no Redis.

    pasts: told of new events even where this process itself keeps none, for the sake of others that do.
    """

    link: RedisLink | None
    limiter: RateLimiter
    pasts: PastCache | None = None
    answers: AnswerCache | None = None
    popularity: SharedCounts | None = None
    bus: Bus | None = None

    @property
    def background(self) -> "tuple[RedisLink | RateLimiter | AnswerCache | Bus, ...]":
        """What has threads, in the order in which it starts."""
        return tuple(part for part in (self.link, self.limiter, self.answers, self.bus) if part is not None)

    def announce(self, change: Change) -> None:
        """Tell the other replicas. Never raises."""
        if self.bus is not None:
            self.bus.announce(change)

    def events_stored(self, events: Sequence[Event]) -> None:
        """See PastCache.stored."""
        if self.pasts is not None:
            self.pasts.stored(events)

    def user_erased(self, user_id: str) -> None:
        """The pasts and the answers that others keep of the user, whether this process keeps any or not."""
        if self.pasts is not None and self.link is not None:
            _forget(self.link, self.pasts, user_id)

    def health(self) -> PartState:
        """Ready in any case: all that Redis does can be done without it."""
        assert self.link is not None  # noqa: S101  # asked only with a Redis
        state = self.link.state()
        if state.up:
            return PartState(True, "ok")
        return PartState(True, f"{state.word}, degraded", f"{state.detail}; replicas poll and nothing is cached")


def make_link(settings: Settings) -> RedisLink | None:
    """The link that `settings` name, not connected. Raises ConfigurationError for a wrong URL or a missing client."""
    url = settings.redis_url.get_secret_value()
    if not url:
        return None
    return RedisLink(
        url,
        prefix=settings.redis_prefix,
        timeout=settings.redis_timeout,
        on_state=lambda up: REDIS_UP.set(int(up)),
        on_error=REDIS_ERRORS.inc,
    )


def make_shared(
    settings: Settings,
    react: Mapping[Change, Callable[[], object]],
    serving: Callable[[], tuple[str | None, str | None]],
) -> Shared:
    """react: to announcements. serving: base and adapter version in memory. Raises as make_link does."""
    link = make_link(settings)
    limiter = RateLimiter(settings.rate_limit, settings.rate_limit_burst, link)
    if link is None:
        return Shared(None, limiter)
    answers = settings.recommendation_cache
    return Shared(
        link,
        limiter,
        pasts=PastCache(link, settings),
        answers=AnswerCache(link, settings, answers, serving) if answers else None,
        popularity=SharedCounts(link, settings.popularity_half_life, settings.ignored_event_types),
        bus=Bus(link, react),
    )


@contextmanager
def announcements(settings: Settings, *, lasting: bool = False) -> Iterator[Announce]:
    """For a process that moves the pointer without serving; lasting: it stays connected. Raises as make_link does."""
    link = make_link(settings)
    if link is None:
        yield nobody
        return
    if lasting:
        link.start()
    else:
        link.connect()
    try:
        yield lambda change: announce(link, change)
    finally:
        link.stop()


@contextmanager
def forgetting(settings: Settings) -> Iterator[Callable[[Sequence[Event]], None]]:
    """For a command that stores events: what to tell them to. Raises as make_link does."""
    link = make_link(settings)
    if link is None:
        yield lambda events: None
        return
    link.connect()
    try:
        yield PastCache(link, settings).stored
    finally:
        link.stop()


@contextmanager
def told_of_erasures(settings: Settings) -> Iterator[Callable[[str], None]]:
    """For a command that erases a user: what to tell the user to. Raises as make_link does."""
    link = make_link(settings)
    if link is None:
        yield lambda user_id: None
        return
    link.connect()
    try:
        pasts = PastCache(link, settings)
        yield lambda user_id: _forget(link, pasts, user_id)
    finally:
        link.stop()


def _forget(link: RedisLink, pasts: PastCache, user_id: str) -> None:
    pasts.forget([user_id])
    answer_cache.forget(link, user_id)

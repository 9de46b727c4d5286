"""Where ADAPTIDE_ARTIFACTS_URL says that artifacts lie, opened; and how that place is."""

from datetime import timedelta

import structlog

from service.adapters.artifacts import ArtifactStore
from service.adapters.cache import Cache
from service.adapters.remote import RemoteShelf
from service.adapters.signatures import Keys
from service.errors import ArtifactError, ConfigurationError
from service.kit.objects import ObjectFolder
from service.kit.poller import Poller
from service.settings import Settings
from service.telemetry import ARTIFACTS_UP

CHECK_INTERVAL = timedelta(seconds=30)

log = structlog.get_logger(__name__)


def open_artifacts(settings: Settings) -> ArtifactStore:
    """The store of artifacts that `settings` name. Connects to nothing.

    Raises ConfigurationError for an unknown scheme, a missing package or a URL that names no place.
    """
    keys = Keys(settings.signing_key.get_secret_value() or None, settings.keys_accepted)
    if settings.artifacts_remote is None:
        return ArtifactStore(settings.artifacts_dir, keys=keys)
    try:
        objects = ObjectFolder(settings.artifacts_remote, settings.artifacts_timeout)
    except ConfigurationError as error:
        raise ConfigurationError(f"ADAPTIDE_ARTIFACTS_URL: {error.detail}") from error
    cache = Cache(settings.artifacts_dir, settings.artifacts_cache_bytes)
    return ArtifactStore(cache.root, RemoteShelf(objects, cache, keys))


def require_writable(artifacts: ArtifactStore) -> None:
    """For whoever is about to publish. Raises ConfigurationError saying why the place cannot be written to."""
    try:
        artifacts.check(write=True)
    except ArtifactError as error:
        raise ConfigurationError(f"ADAPTIDE_ARTIFACTS_URL: {error.detail}") from error


class PlaceWatch:
    """Asks now and then whether the place of artifacts answers; `trouble` says what the latest answer was.

    A replica serves what it holds without it, so this is something to know, not a reason to stop.
    """

    def __init__(self, artifacts: ArtifactStore, interval: timedelta = CHECK_INTERVAL) -> None:
        self._artifacts = artifacts
        self._poller = Poller("artifacts-check", interval, self.ask)
        self.trouble: str | None = None

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        """Does not wait for an answer that is still out."""
        self._poller.stop(wait_s=0.2)

    def ask(self) -> None:
        """Ask now; takes as long as the place takes to answer."""
        try:
            self._artifacts.check()
        except ArtifactError as error:
            if self.trouble is None:
                log.error("artifacts_unreachable", reason=error.detail)
            self.trouble = error.detail
            ARTIFACTS_UP.set(0)
        else:
            if self.trouble is not None:
                log.info("artifacts_reachable_again")
            self.trouble = None
            ARTIFACTS_UP.set(1)

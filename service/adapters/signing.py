"""`adaptide artifacts sign`: gives what is registered the signature of the key that signs now, once it was verified."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import structlog

from service.adapters import repository
from service.adapters.artifacts import ADAPTERS, BASES, ArtifactStore
from service.adapters.repository import Adapter, Base
from service.adapters.states import AdapterState
from service.audit import repository as audit
from service.errors import ArtifactError, ArtifactUnreachable
from service.kit.clock import Clock
from service.kit.db import Database

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Signed:
    """Names of bases and adapters: signed now, signed before, and refused with the reason."""

    signed: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def sign_registered(database: Database, clock: Clock, artifacts: ArtifactStore, key_id: str, *, actor: str) -> Signed:
    """Sign every base and adapter that is registered and was not collected, each with a row in the audit log.

    What is not byte for byte what was registered is refused and keeps the signature that it has. key_id: of the key
    that signs now. Raises ArtifactUnreachable when the place does not answer; what was signed by then stays signed.
    """
    reader, done = artifacts.without_keys(), Signed()

    def sign(room: str, name: str, digest: str, verify: Callable[[], object]) -> None:
        try:
            verify()
            fresh = artifacts.sign(room, name, digest)
        except ArtifactUnreachable:
            raise
        except ArtifactError as error:
            done.refused[name] = error.detail
            return
        if not fresh:
            done.before.append(name)
            return
        with database.write() as connection:
            details = {"key": key_id}
            audit.append(connection, now=clock(), actor=actor, action="artifact.sign", subject=name, details=details)
        log.info("artifact_signed", artifact=name, key=key_id)
        done.signed.append(name)

    with database.read() as connection:
        bases = {base.base_id: base for base in repository.list_bases(connection) if base.collected_at is None}
        adapters = repository.list_adapters(connection, limit=None)
    for base in bases.values():
        sign(BASES, base.base_id, base.digest, partial(reader.open_base, base.base_id, base.digest))
    for adapter in adapters:
        if adapter.state is not AdapterState.COLLECTED and adapter.base_id in bases:
            verify = partial(_verify, reader, adapter, bases[adapter.base_id])
            sign(ADAPTERS, adapter.adapter_version, adapter.digest, verify)
    return done


def _verify(reader: ArtifactStore, adapter: Adapter, base: Base) -> None:
    dimensions = reader.read_dimensions(base.base_id, base.digest)
    reader.verify_adapter(adapter.adapter_version, adapter.digest, base.base_id, dimensions)

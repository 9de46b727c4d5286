"""Which published artifacts somebody may still need, and which nobody does. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.adapters import states
from service.adapters.repository import Adapter, Base, Pointer
from service.adapters.states import AdapterState

_COULD_SERVE = states.PROMOTABLE | {AdapterState.ACTIVE}


@dataclass(frozen=True, slots=True)
class Use:
    """A base or adapter that somebody names: a replica (`by` "replica R"), an unfinished window. None names nothing."""

    by: str
    base_id: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Registry:
    """What the store says at one moment.

    bases and adapters: newest first. served: what a rollback can walk back through, the last element serves
    (states.served_stack of the active base).
    """

    pointer: Pointer
    bases: Sequence[Base]
    adapters: Sequence[Adapter]
    served: Sequence[str | None]
    uses: Sequence[Use]


@dataclass(frozen=True, slots=True)
class Choice:
    """Name -> why it is kept; names that are not kept. Those that were collected before are in neither."""

    kept_adapters: Mapping[str, str]
    kept_bases: Mapping[str, str]
    adapters: Sequence[str]
    bases: Sequence[str]


def choose(registry: Registry, *, keep: int, since: datetime) -> Choice:
    """What is needed, and what is not.

    An adapter is needed when the pointer, a use or a rollback through the last `keep` served versions names it, when
    it is among the `keep` newest that could serve, or was registered after `since`. A base is needed when the pointer
    or a use names it, when an adapter that is kept was made for it, or when it was registered after `since`.
    """
    present = [adapter for adapter in registry.adapters if adapter.state is not AdapterState.COLLECTED]
    by_version = {adapter.adapter_version: adapter for adapter in present}
    kept: dict[str, str] = {}
    if registry.pointer.adapter_version is not None:
        kept[registry.pointer.adapter_version] = "active"
    for use in registry.uses:
        if use.version is not None:
            kept.setdefault(use.version, use.by)
    for version in _rollbacks(registry.served, by_version, keep):
        kept.setdefault(version, "rollback")
    for adapter in [adapter for adapter in present if adapter.state in _COULD_SERVE][:keep]:
        kept.setdefault(adapter.adapter_version, "among the newest")
    for adapter in present:
        if adapter.created_at > since:
            kept.setdefault(adapter.adapter_version, "young")
    kept = {version: why for version, why in kept.items() if version in by_version}

    kept_bases: dict[str, str] = {}
    if registry.pointer.base_id is not None:
        kept_bases[registry.pointer.base_id] = "active"
    for use in registry.uses:
        if use.base_id is not None:
            kept_bases.setdefault(use.base_id, use.by)
    for version in kept:
        kept_bases.setdefault(by_version[version].base_id, f"base of {version}")
    for base in registry.bases:
        if base.created_at > since:
            kept_bases.setdefault(base.base_id, "young")
    there = {base.base_id for base in registry.bases if base.collected_at is None}
    kept_bases = {base_id: why for base_id, why in kept_bases.items() if base_id in there}
    return Choice(kept, kept_bases, sorted(by_version.keys() - kept), sorted(there - kept_bases.keys()))


def _rollbacks(served: Sequence[str | None], by_version: Mapping[str, Adapter], keep: int) -> list[str]:
    """The last `keep` versions below the one that serves that a rollback could reach, latest first."""
    reachable = [
        version
        for version in reversed(served[:-1])
        if version is not None and version in by_version and by_version[version].state in states.RESTORABLE
    ]
    return list(dict.fromkeys(reachable))[:keep]

"""What an unfinished training has come to, on the disk: a killed one goes on from there to the very same result.

HOME/checkpoints/KIND/KEY/STEP holds state.safetensors, state.json and a manifest with their hashes, published by
rename. KEY is a digest of all that decides the result, so a checkpoint of anything else is never taken up. Of a kind
there is one key at a time and of a key one step, apart from the moment in which the next replaces it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.kit.crash_points import CrashPoint, crash_point
from service.kit.files import publish_folder, sha256_file
from service.settings import Settings
from trainer.group import Group

STATE, TENSORS, MANIFEST = "state.json", "state.safetensors", "manifest.json"
STEPS_BETWEEN_QUESTIONS = 16
"""Ranks agree whether a checkpoint is due, each time a wait for the device."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Checkpoints:
    """Of one training. folder: all of this kind. subject: what it learns from and for, in words and ids.

    interval: seconds of training between two checkpoints, 0: one after each step. key: empty until `keyed`.
    """

    folder: Path
    subject: str
    interval: float
    key: str = ""
    _last: float = field(default_factory=time.monotonic)

    def keyed(self, *contents: object) -> "Checkpoints":
        """The same for a training that `contents` decide too: text, numbers, arrays, tensors, mappings, lists."""
        return replace(self, key=digest_of(self.subject, self.key, contents)[:32])

    def due(self, group: Group, step: int) -> bool:
        """Whether one is to be written after `step`. Collective, and equal on all ranks."""
        if self.interval > 0 and group.size > 1 and step % STEPS_BETWEEN_QUESTIONS:
            return False
        return bool(group.agree(time.monotonic() - self._last >= self.interval))

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], group: Group) -> None:
        """Rank 0 publishes; one that cannot be written is told of, and the training goes on."""
        self._last = time.monotonic()
        if group.rank:
            return
        target = self.folder / self.key / f"{step:010d}"
        try:
            with publish_folder(target) as staging:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / TENSORS)
                (staging / STATE).write_text(json.dumps(values), encoding="utf-8")
                hashes = {name: sha256_file(staging / name) for name in (STATE, TENSORS)}
                (staging / MANIFEST).write_text(json.dumps({"key": self.key, "sha256": hashes}), encoding="utf-8")
                crash_point(CrashPoint.CHECKPOINT_WRITTEN)
            self._forget(target)
            crash_point(CrashPoint.CHECKPOINTED)
        except (OSError, SafetensorError) as error:  # safetensors has its own for a disk that is full
            log.warning("checkpoint_not_written", step=step, reason=str(error))

    def load(self, group: Group) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest of this key that is whole, on the CPU; what is of another key or damaged goes. Collective."""
        found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        step = -1
        if group.rank == 0:
            for path in sorted((self.folder / self.key).glob("[0-9]*"), reverse=True):
                try:
                    found, step = _read(path, self.key), int(path.name)
                    break
                except (OSError, ValueError, KeyError, SafetensorError) as error:
                    log.warning("checkpoint_ignored", checkpoint=path.name, reason=str(error))
            self._forget(self.folder / self.key / f"{step:010d}")
        step = int(group.agree(step))
        if step < 0:
            return None
        if group.rank == 0:
            log.info("training_resumed", subject=self.subject, step=step)
        return found or _read(self.folder / self.key / f"{step:010d}", self.key)

    def clear(self) -> None:
        """Remove all of this kind; for when the outcome is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _forget(self, kept: Path) -> None:
        for path in [*self.folder.glob("*/*"), *self.folder.glob("*")]:
            if path not in (kept, kept.parent):
                shutil.rmtree(path, ignore_errors=True)


def kept_training(settings: Settings, kind: str, subject: str) -> Checkpoints | None:
    """Where a training of this kind is kept; None where the settings want none."""
    interval = settings.checkpoint_interval.total_seconds()
    return Checkpoints(settings.home_dir / "checkpoints" / kind, subject, interval) if interval > 0 else None


def digest_of(*contents: object) -> str:
    """SHA-256, hex, of text, numbers, arrays, tensors, mappings and lists; other contents have another one."""
    digest = hashlib.sha256()
    for part in _parts(contents):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["key"] != key:
        raise ValueError("it is of another training")
    for name in (STATE, TENSORS):
        if sha256_file(path / name) != manifest["sha256"][name]:
            raise ValueError(f"{name} is damaged")
    return load_file(path / TENSORS), json.loads((path / STATE).read_text(encoding="utf-8"))


def _parts(value: object) -> Iterable[bytes]:
    """Bytes that tell any two contents apart."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _parts(name)
            yield from _parts(value[name])
        yield b"end"
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
        yield b"end"
    elif isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    else:
        yield repr(value).encode()

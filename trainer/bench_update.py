"""What an update costs, step by step, as its window, the history before it and the catalogue grow one at a time."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from service.adapters.artifacts import ArtifactStore
from service.adapters.place import open_artifacts
from service.adapters.repository import NewAdapter, NewBase
from service.catalog.semantic_ids import Codec, TfidfEncoder
from service.errors import Unavailable
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.states import SealedBecause
from trainer.bench_stores import empty_store, fill, fill_items
from trainer.lora import LoraBackbone, save_adapter
from trainer.tiny import TinyConfig, new_tiny, save_model
from trainer.updater import Updater

START = 1_767_225_600.0  # 2026-01-01T00:00:00Z
HISTORY_DAYS, WINDOW_DAYS = 90.0, 1.0
RUNS = ("first", "running", "restarted")
GROWS = {"window": "window_events", "history": "users", "lives": "life", "catalogue": "items"}


@dataclass(frozen=True, slots=True)
class World:
    """window_events: of one window, 10 a user. users: of whom the store has a history, `life` events each."""

    window_events: int = 2_000
    users: int = 1_000
    life: int = 20
    items: int = 2_000

    @property
    def history(self) -> int:
        return self.users * self.life


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """grows: what is `factor` times its usual size: "window", "history" (more users), "lives" (the same users, with
    more behind each) or "catalogue".

    run: "first" (a new process; nothing was counted yet), "running" (the same process, the next window) or "restarted"
    (a new process, the window after). verdict: of the window; without a candidate the last steps are missing. window:
    the interactions that it held. seconds: of sealing, of each step, of the `rest` and of `all` of it.
    """

    store: str
    grows: str
    factor: int
    run: str
    verdict: str | None
    window: int
    history: int
    life: int
    items: int
    seconds: dict[str, float]


def grown(world: World, grows: str, factor: int) -> World:
    """`world` with one of its sizes `factor` times as large."""
    return replace(world, **{GROWS[grows]: factor * getattr(world, GROWS[grows])})


def bench_update(
    server: str | None, grows: str, factor: int, *, world: World | None = None, seed: int = 0
) -> Iterator[UpdateRow]:
    """Three windows of one size, one after the other, through the real updater; a row for each."""
    sizes = grown(world or World(), grows, factor)
    with empty_store(server) as database, tempfile.TemporaryDirectory(prefix="adaptide-bench-") as home:
        # One pass over the window: with the shipped settings a small one is passed over until 600 steps are done.
        settings = Settings(
            home=Path(home),
            update_epochs=1,
            update_min_steps=0,
            learning_rate_update=5e-4,  # little by little: nearly every window then has a candidate to evaluate
            evaluation_users=100,
            evaluation_items_per_user=2,
            window_max_events=100 * sizes.window_events,
            seed=seed,
        )
        artifacts = open_artifacts(settings)
        base, adapter = _random_base(artifacts, settings)
        fill_items(database, sizes.items, base.base_id)
        _fill(database, sizes, sizes.history, sizes.users, "history", START, HISTORY_DAYS)
        windows.install_base(
            database, utc_now, base, through_seq=windows.horizon(database), actor="bench", adapter=adapter
        )
        updater = Updater(database, settings, utc_now, artifacts)
        for number, run in enumerate(RUNS):
            start = START + 86_400 * (HISTORY_DAYS + number * WINDOW_DAYS)
            _fill(database, sizes, sizes.window_events, sizes.window_events // 10, run, start, WINDOW_DAYS)
            if run == "restarted":
                updater = Updater(database, settings, utc_now, artifacts)
            yield _update(database, settings, updater, sizes, grows, factor, run)


def _update(
    database: Database, settings: Settings, updater: Updater, sizes: World, grows: str, factor: int, run: str
) -> UpdateRow:
    started = time.perf_counter()
    windows.seal(database, utc_now, settings, SealedBecause.MANUAL)
    sealed = time.perf_counter() - started
    window = updater.tick()
    everything = time.perf_counter() - started
    if window is None or not window.steps or "fit" not in {row["step"] for row in window.steps}:
        raise Unavailable(f"nothing was learnt: {window and window.reason}")
    steps = {str(row["step"]): float(row["seconds"]) for row in window.steps}
    rest = everything - sealed - sum(steps.values())
    seconds = {"seal": round(sealed, 3), **steps, "rest": round(rest, 3), "all": round(everything, 3)}
    held = int((window.statistics or {})["interactions"])
    return UpdateRow(
        database.dialect, grows, factor, run, window.verdict, held, sizes.history, sizes.life, sizes.items, seconds
    )


def _fill(database: Database, sizes: World, events: int, users: int, prefix: str, start: float, days: float) -> None:
    fill(
        database,
        events,
        users=users,
        items=sizes.items,
        start=start,
        days=days,
        prefix=f"{prefix}-",
        equal_users=True,
    )


def _random_base(artifacts: ArtifactStore, settings: Settings) -> tuple[NewBase, NewAdapter]:
    """A small model that has learnt nothing: the time of each step does not depend on what the weights are."""
    config = TinyConfig(hidden=64, layers=2, heads=2)
    backbone = new_tiny(config, settings.seed)
    rank, alpha = settings.lora_rank, settings.lora_alpha
    encoder = TfidfEncoder(("thing",), np.ones(1, np.float32), np.ones((1, 1), np.float32))
    codec = Codec(encoder, (), np.zeros((4, 256, 1), np.float32), "rqkmeans")
    with tempfile.TemporaryDirectory(prefix="adaptide-bench-") as folder:
        path = Path(folder)
        save_model(backbone, path / "base" / "model")
        codec.save(path / "base" / "codec")
        base = artifacts.publish_base(path / "base", {"model": asdict(config)})
        lora = LoraBackbone(backbone, rank=rank, alpha=alpha, dropout=0.0, seed=settings.seed)
        save_adapter(path / "adapter", lora.tensors(), scale=alpha / rank, dropout=0.0)
        adapter = artifacts.publish_adapter(path / "adapter", {"base_id": base.id, "method": "fresh"}, 0)
    return NewBase(base.id, base.digest), NewAdapter(adapter.id, base.id, adapter.digest, "fresh")

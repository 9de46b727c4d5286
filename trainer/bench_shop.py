"""A generated shop for benchmarks of the service: store, catalogue, users, base, two adapters, and the real server."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
import torch
from pydantic import SecretStr

from service.adapters import service as registry
from service.adapters.artifacts import ArtifactStore, VerifiedBase
from service.adapters.place import open_artifacts
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.catalog import repository as catalog
from service.catalog.follower import CatalogueFollower
from service.catalog.index import CatalogueIndex
from service.catalog.semantic_ids import Codec, TfidfEncoder
from service.catalog.trie import CODES, LEVELS
from service.errors import Unavailable
from service.events.service import ingest
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchEngine, TorchModel
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from service.windows.sealing import install_base
from trainer.bench_evaluation import random_backbone, random_catalogue
from trainer.demo_processes import HOST, Child, free_port, prepare_store, start_command
from trainer.load import Plan, Reply, Run
from trainer.lora import LoraBackbone, save_adapter
from trainer.tiny import TinyConfig, save_model

HISTORY = 25  # events a user: more than the prompt holds, so that what was seen is read too
START = datetime(2026, 1, 1, tzinfo=UTC)
LORA_RANK, LORA_SCALE = 8, 2.0
UP_S = 120.0  # the server must serve the adapter by then


@dataclass(frozen=True, slots=True)
class ShopSize:
    """hidden, layers: of a Llama with random weights, 8 heads. users: with HISTORY different past items each."""

    hidden: int = 256
    layers: int = 6
    items: int = 20_000
    users: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class BenchShop:
    """requests: what the engine is asked for each user, by user. versions: the serving adapter, and another one."""

    state: Path
    settings: Settings
    token: str
    index: CatalogueIndex
    requests: dict[str, GenerationRequest]
    base: VerifiedBase
    versions: tuple[str, str]
    digests: tuple[str, str]

    def engine(self, threads: int) -> TorchEngine:
        """As the server makes it."""
        settings = self.settings
        return TorchEngine(device=settings.device, dtype=settings.dtype, beams=settings.beams, threads=threads)

    def model(self, engine: TorchEngine, which: int = 0) -> TorchModel:
        """The base with one of the adapters, loaded as the server loads it."""
        artifacts = open_artifacts(self.settings)
        return engine.load(self.base, artifacts.open_adapter(self.versions[which], self.digests[which], self.base))


def build_shop(state: Path, size: ShopSize, limit: int, url: str = "") -> BenchShop:
    """Write everything that a server needs into the empty folder `state`. limit: items asked for.

    url: of an empty store; SQLite in `state` without.
    """
    token = prepare_store(state, url)
    settings = Settings(home=state, database_url=SecretStr(url))
    database = Database(settings.store_url)
    try:
        random = np.random.default_rng(size.seed)
        drawn = random_catalogue(size.items, random).items
        codes = {f"i{row:07}": item.codes for row, item in enumerate(drawn) if item.codes is not None}
        users = {f"u{user:05}": random.choice(len(codes), HISTORY, replace=False) for user in range(size.users)}
        _put_items(database, list(codes))
        _send_events(database, settings, users)
        artifacts = open_artifacts(settings)
        base, adapters = _publish(state / "sources", artifacts, size)
        install_base(
            database,
            utc_now,
            base,
            through_seq=len(users) * HISTORY,
            actor="cli",
            adapter=adapters[0],
            first=lambda connection: catalog.set_codes(
                connection, base.base_id, codes, revision=catalog.next_revision(connection)
            ),
        )
        registry.register_adapter(database, utc_now, adapters[1], AdapterState.PASSED)
        index = CatalogueFollower(database, settings.poll_interval).refresh()
    finally:
        database.close()
    trie, kept = index.trie, settings.history_items
    requests = {
        user: GenerationRequest(index.codes[past[-kept:]], limit, trie.excluded_leaves(np.unique(past)))
        for user, past in users.items()
    }
    opened = artifacts.open_base(base.base_id, base.digest)
    first, second = adapters
    versions, digests = (first.adapter_version, second.adapter_version), (first.digest, second.digest)
    return BenchShop(state, settings, token, index, requests, opened, versions, digests)


def _put_items(database: Database, names: list[str]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "item_id": name,
            "title": f"Item {name}",
            "description": None,
            "categories": [f"category {place % 20}"],
            "brand": None,
            "available": True,
        }
        for place, name in enumerate(names)
    ]
    with database.write() as connection:
        catalog.put_many(connection, rows, now=utc_now(), revision=catalog.next_revision(connection))


def _send_events(database: Database, settings: Settings, users: dict[str, Any]) -> None:
    events = [
        {
            "event_id": f"{user}-{place}",
            "user_id": user,
            "item_id": f"i{row:07}",
            "event_type": "purchase",
            "occurred_at": (START + timedelta(minutes=place)).isoformat(),
        }
        for user, past in users.items()
        for place, row in enumerate(past.tolist())
    ]
    ingest(database, events, clock=utc_now, clock_tolerance=settings.clock_tolerance)


def _publish(folder: Path, artifacts: ArtifactStore, size: ShopSize) -> tuple[NewBase, list[NewAdapter]]:
    backbone = random_backbone(TinyConfig(hidden=size.hidden, layers=size.layers), size.seed)
    (folder / "base" / "model").mkdir(parents=True)
    save_model(backbone, folder / "base" / "model")
    _codec(size.seed).save(folder / "base" / "codec")
    base = artifacts.publish_base(folder / "base", {"backbone": "random"})
    adapters = []
    for seed in (1, 2):
        lora = LoraBackbone(backbone, rank=LORA_RANK, alpha=LORA_SCALE * LORA_RANK, dropout=0.0, seed=seed)
        torch.manual_seed(seed)
        tensors = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in lora.tensors().items()}
        lora.unwrap()
        save_adapter(folder / f"adapter-{seed}", tensors, scale=LORA_SCALE)
        made = artifacts.publish_adapter(folder / f"adapter-{seed}", {"base_id": base.id})
        adapters.append(NewAdapter(made.id, base.id, made.digest, "random", trained_through=START))
    return NewBase(base.id, base.digest, trained_through=START), adapters


def _codec(seed: int) -> Codec:
    """For items that come later; the catalogue has its codes already."""
    random = np.random.default_rng(seed)
    components = random.standard_normal((8, 4)).astype(np.float32)
    books = random.standard_normal((LEVELS, CODES, 8)).astype(np.float32)
    encoder = TfidfEncoder(("category", "item", "new", "old"), np.ones(4, dtype=np.float32), components)
    return Codec(encoder, (), books, "rqkmeans")


class Server:
    """`adaptide serve` over a shop, up and serving the adapter."""

    def __init__(self, child: Child, port: int, token: str) -> None:
        self.host, self.port, self._child = HOST, port, child
        self._process = psutil.Process(child.process.pid)
        self._client = httpx.Client(
            base_url=f"http://{HOST}:{port}", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )

    def resident_mib(self) -> float:
        return float(self._process.memory_info().rss / 2**20)

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def metric(self, name: str) -> float:
        """A sample of /metrics without labels, or with those in `name`."""
        for line in self._client.get("/metrics").raise_for_status().text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise Unavailable(f"the service has no metric {name}")

    def promote(self, version: str) -> int:
        """Move the pointer through the registry; returns its new revision."""
        reply = self._client.post(f"/v1/admin/adapters/{version}/promote").raise_for_status()
        revision: int = reply.json()["revision"]
        return revision

    def set_trial(self, wanted: dict[str, Any] | None) -> None:
        """Start or change the trial; None ends it, if there is one."""
        if wanted is not None:
            self._client.put("/v1/admin/trial", json=wanted).raise_for_status()
        elif (reply := self._client.delete("/v1/admin/trial")).status_code != httpx.codes.CONFLICT:
            reply.raise_for_status()

    def wait_until_personal(self, user: str) -> None:
        """Raises Unavailable when no adapter serves in time."""
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            self._child.require_alive()
            try:
                reply = self._client.post("/v1/recommendations", json={"user_id": user})
                if reply.is_success and reply.json()["strategy"] == "personalised":
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise Unavailable(f"the service did not serve the adapter within {UP_S:.0f} s; its log is {self._child.log}")

    def close(self) -> None:
        self._client.close()


@contextmanager
def serving(shop: BenchShop, threads: int) -> Iterator[Server]:
    """The real server on a free port of the loopback, ended with the block."""
    with ExitStack() as stack:
        port = free_port(0)
        store = shop.settings.database_url.get_secret_value()
        own = {"THREADS": str(threads), "LOG_LEVEL": "INFO", "DATABASE_URL": store}
        child = start_command(stack, shop.state, "serve", "serve", "--host", HOST, "--port", str(port), **own)
        server = Server(child, port, shop.token)
        stack.callback(server.close)
        server.wait_until_personal(next(iter(shop.requests)))
        yield server


def drive(plan: Plan) -> Run:
    """Send a Plan from a process of its own. Raises Unavailable when that fails."""
    with tempfile.TemporaryDirectory(prefix="adaptide-load-") as folder:
        written = Path(folder) / "run.json"
        command = [sys.executable, "-m", "trainer.load", str(written)]
        done = subprocess.run(command, input=orjson.dumps(asdict(plan)), capture_output=True, check=False)  # noqa: S603
        if done.returncode:
            raise Unavailable(f"the load generator failed: {done.stderr.decode(errors='replace')[-500:]}")
        found = orjson.loads(written.read_bytes())
    replies = [Reply(**reply) for reply in found.pop("replies")]
    return Run(replies=replies, **found)

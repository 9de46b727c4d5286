"""A shop over the real application: ask, promote, and let the brute-force referee say what the reply should be."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.moves import MoveRequest
from service.adapters.repository import NewAdapter
from service.adapters.states import AdapterState
from service.catalog.index import CatalogueIndex
from service.generation.backbone import Backbone, load_backbone, merge_lora
from service.generation.reference import score_items
from service.settings import Settings
from service.wiring import Services
from tests import worlds
from trainer.base import BuiltBase
from trainer.lora import LoraBackbone, save_adapter

if TYPE_CHECKING:
    from tests.built import BuiltWorld

Reply = dict[str, Any]


def exact(database_url: str, home: Path, **changes: Any) -> Settings:
    """Settings under which a search is exact and what changes is soon seen."""
    own = {"log_level": "WARNING", "poll_interval": 0.05, "popularity_refresh": 0.05, "threads": 1}
    beams = 64  # more than there are items
    return Settings(home=home, database_url=database_url, beams=beams, **(own | changes))


class Shop:
    """`adapters` holds the tensors of every adapter that may serve, by version; None: the base alone."""

    @classmethod
    def serving(cls, app: FastAPI, client: TestClient, built_world: "BuiltWorld") -> "Shop":
        """The small world, copied into the application's store and home, once its adapter serves."""
        services: Services = app.state.services
        made = cls(app, client, built_world.copy_into(services.database, services.settings.artifacts_dir))
        worlds.eventually(lambda: made.served() == made.built.adapter_version, 30)
        return made

    def __init__(self, app: FastAPI, client: TestClient, built: BuiltBase) -> None:
        self.app, self.client, self.built = app, client, built
        self.services: Services = app.state.services
        self.artifacts = self.services.artifacts
        self._adapters: dict[str | None, dict[str, torch.Tensor]] = {None: {}, built.adapter_version: {}}

    @property
    def index(self) -> CatalogueIndex:
        return self.services.catalogue.index

    def ask(self, **wanted: Any) -> Reply:
        reply = self.client.post("/v1/recommendations", json=wanted)
        assert reply.status_code == 200, reply.text
        found: Reply = reply.json()
        return found

    def served(self) -> str | None:
        """The adapter version that a reply names now."""
        model = self.ask(history=["i00"])["model"]
        version: str | None = model["adapter_version"] if model else None
        return version

    def send(self, *events: Reply) -> None:
        reply = self.client.post("/v1/events", json={"events": events})
        assert (reply.status_code, reply.json()["accepted"]) == (202, len(events)), reply.text

    def adapter(self, seed: int) -> str:
        """Publish and register an adapter that changes every score; returns its version."""
        lora = LoraBackbone(self._base(), rank=8, alpha=16, dropout=0.0, seed=seed)
        tensors = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in lora.tensors().items()}
        with tempfile.TemporaryDirectory() as source:
            save_adapter(Path(source), tensors, scale=2.0)
            made = self.artifacts.publish_adapter(Path(source), {"base_id": self.built.base_id})
        new = NewAdapter(made.id, self.built.base_id, made.digest, "peso", trained_through=worlds.START)
        adapters.register_adapter(self.services.database, self.services.clock, new, AdapterState.PASSED)
        self._adapters[made.id] = tensors
        return made.id

    def damage(self, version: str) -> None:
        """Flip one bit of an adapter's weights."""
        path = self.artifacts.root / "adapters" / version / "adapter_model.safetensors"
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    def point_at(self, version: str) -> None:
        """Move the pointer as another replica would that has verified the adapter."""
        with self.services.database.write() as connection:
            pointer = adapter_rows.read_pointer(connection, lock=True)
            adapters.promote_in(connection, self.services.clock, pointer, version, MoveRequest("key:other"))

    def referee(self, version: str | None, history: list[str]) -> dict[str, float]:
        """Every item's score by full forward passes through the model that `version` names."""
        backbone = self._base()
        if tensors := self._adapters[version]:
            backbone = merge_lora(backbone, tensors, 2.0)
        index = self.index
        rows = index.with_codes(index.rows(history))
        known = np.flatnonzero(index.coded)
        scores = score_items(backbone, index.codes[rows], index.codes[known])
        return {index.items[row].item_id: score for row, score in zip(known.tolist(), scores.tolist(), strict=True)}

    def _base(self) -> Backbone:
        folder = self.artifacts.root / "bases" / self.built.base_id / "model"
        return load_backbone(folder, torch.device("cpu"), torch.float32)


def ids(reply: Reply) -> list[str]:
    return [item["item_id"] for item in reply["items"]]


def ladder(reply: Reply) -> tuple[str, str | None]:
    return reply["strategy"], reply["fallback_reason"]

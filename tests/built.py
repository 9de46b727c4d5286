"""A real base, built once on the small world of tests.worlds, and copied into each test's own store and home."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
import torch

from service.adapters.artifacts import ArtifactStore
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from service.tables import metadata
from tests import worlds
from trainer.base import BuiltBase, build_base
from trainer.recipe import BaseRecipe
from trainer.tiny import TinyConfig
from trainer.tokenizer.fit import Quantiser, TokenizerConfig

torch.set_num_threads(1)  # models this small only wait for one another's threads

RECIPE = BaseRecipe(
    tiny=TinyConfig(hidden=32, layers=2, heads=1),
    tokenizer=TokenizerConfig(quantiser=Quantiser.RQKMEANS),
    epochs=30,
    batch_size=4,
    evaluate_every=10,
    patience=3,
)
"""A base that has learnt the pattern (NDCG@10 about 0.9, in float32 and bfloat16) in a few seconds."""


@dataclass(frozen=True)
class BuiltWorld:
    """The world after its first walks, with a base built on them, to be copied into a test's own store and home."""

    database: Database
    artifacts: Path
    built: BuiltBase

    @classmethod
    def build(cls, folder: Path) -> "BuiltWorld":
        database, clock = Database(f"sqlite:///{folder / 'adaptide.db'}"), _noon
        migrate.upgrade(database)
        worlds.put(database, clock, worlds.items())
        worlds.send(database, clock, worlds.first_walks())
        settings = Settings(
            home=folder,
            learning_rate_base=5e-3,
            embedding_dropout=0.0,
            residual_dropout=0.0,
            lora_rank=8,  # with more, the rates of these tests are too high
            lora_alpha=16,
        )
        built = build_base(database, ArtifactStore(settings.artifacts_dir), settings, clock, RECIPE, actor="tests")
        return cls(database, settings.artifacts_dir, built)

    def copy_into(self, database: Database, artifacts: Path) -> BuiltBase:
        """Make an empty store and home hold this world; returns what the build said."""
        shutil.copytree(self.artifacts, artifacts)
        with self.database.read() as source, database.write() as target:
            for table in metadata.sorted_tables:
                rows = [dict(row) for row in source.execute(sa.select(table)).mappings()]
                if table.name in ("catalog_revision", "active_adapter"):
                    continue  # single rows that are there already; they point at others, so they come last
                if rows:
                    target.execute(table.insert(), rows)
            for table in (metadata.tables["catalog_revision"], metadata.tables["active_adapter"]):
                target.execute(table.update().values(**source.execute(sa.select(table)).mappings().one()))
            if database.dialect == "postgresql":
                for name, key in (("events", "seq"), ("windows", "window_id"), ("evaluations", "evaluation_id")):
                    table = metadata.tables[name]
                    following = sa.select(sa.func.coalesce(sa.func.max(table.c[key]), 0) + 1).scalar_subquery()
                    sequence = sa.func.pg_get_serial_sequence(name, key)
                    target.execute(sa.select(sa.func.setval(sequence, following, False)))
        return self.built


def _noon() -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC)

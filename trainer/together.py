"""A window's adapter trained in this process, or in several that trainer.processes starts and waits for."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.generation.backbone import Backbone
from service.settings import Settings
from trainer.checkpoints import Checkpoints
from trainer.examples import Examples
from trainer.fit import FitReport
from trainer.group import Group
from trainer.language_model import load_trainable
from trainer.learn import Train, adapt
from trainer.methods import make_method
from trainer.methods.base import Adapter, Method
from trainer.processes import Together
from trainer.progress import Report, silent
from trainer.sharding import shard


def require_shareable(method: str) -> None:
    """Raises ConfigurationError for a method that several processes cannot run."""
    if method == "output-kl":
        raise ConfigurationError(
            "the method output-kl compares outputs on a whole batch's inputs, which no single process of several sees: "
            "set ADAPTIDE_PROCESSES=1 or choose another method (ADAPTIDE_METHOD)"
        )


def adapting(together: Together | None, model: Path, kept: Checkpoints | None) -> Train:
    """How an updater adapts to a window: in this process, or in several that load the base from its verified folder."""

    def train(
        backbone: Backbone,
        incumbent: Adapter | None,
        method: Method,
        examples: Examples,
        codes: NDArray[np.int16],
        settings: Settings,
        report: Report = silent,
    ) -> tuple[Adapter | None, FitReport]:
        if together is None:
            return adapt(backbone, incumbent, method, examples, codes, settings, report, kept=kept)
        return together.run(_adapt, (model, incumbent, examples, codes, without_store(settings), kept), report)

    return train


def _adapt(
    group: Group,
    report: Report,
    model: Path,
    incumbent: Adapter | None,
    examples: Examples,
    codes: NDArray[np.int16],
    settings: Settings,
    kept: Checkpoints | None,
) -> tuple[Adapter | None, FitReport]:
    backbone = load_trainable(model, torch.device("cpu") if group.sharded else group.device)
    if group.sharded:
        shard(backbone, group)
    return adapt(backbone, incumbent, make_method(settings), examples, codes, settings, report, group=group, kept=kept)


def without_store(settings: Settings) -> Settings:
    """The same without the store's address: ranks have no business there."""
    return settings.model_copy(update={"database_url": type(settings.database_url)("")})

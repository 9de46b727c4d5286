"""What an update's weights depend on, kept with the adapter so that they can be made again (docs/time-travel.md)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from service.catalog.index import CatalogueIndex
from service.errors import ConfigurationError
from service.kit.machine import cpu_name
from service.settings import Settings
from trainer.checkpoints import digest_of
from trainer.examples import Examples, sample_cases
from trainer.learn import DECIDES

STREAMS = frozenset(
    {
        "ignored_event_types",
        "seen_items",
        "history_items",
        "min_events_per_user",
        "window_max_user_share",
        "window_max_events_per_user",
        "window_max_repeats",
    }
)
"""Settings that choose what is learnt from."""
TRAINING = frozenset(
    {
        "method",
        "update_epochs",
        "update_min_steps",
        "update_batch_size",
        "learning_rate_update",
        "weight_decay",
        "embedding_dropout",
        "residual_dropout",
        "evaluation_users",
        "seed",
        "processes",
        "shard",
    }
)
"""Settings that choose how; with trainer.learn.DECIDES."""
KEPT = STREAMS | TRAINING | DECIDES


def basis(settings: Settings, index: CatalogueIndex, examples: Examples, device: torch.device) -> dict[str, Any]:
    """For the adapter's hyperparameters. To be asked on the thread that trains, which its number of threads is."""
    return {
        "settings": settings.model_dump(mode="json", include=set(KEPT)),
        "catalog_revision": index.revision,
        "data": data_digest(examples, index.codes, settings),
        "machine": machine(device),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What rounding depends on."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "kind": device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def data_digest(examples: Examples, codes: NDArray[np.int16], settings: Settings) -> str:
    """Of what is trained on and validated by, as the model sees it: 32 hex digits."""
    validation = sample_cases(examples.validation, settings.evaluation_users, settings.seed)
    training = [(codes[sequence.rows], sequence.first_target) for sequence in examples.training]
    return digest_of(training, [(codes[case.history], codes[case.target]) for case in validation])[:32]


def settings_then(settings: Settings, kept: Mapping[str, Any]) -> Settings:
    """`settings` with what was kept in its place. Raises ConfigurationError for one that this version has no more."""
    values = {}
    for name, value in kept.items():
        field = Settings.model_fields.get(name)
        if field is None:
            raise ConfigurationError(f"it was trained with a setting {name}, which this version does not have")
        try:
            values[name] = TypeAdapter(field.annotation or object).validate_python(value, strict=False)
        except ValidationError as error:
            raise ConfigurationError(f"it was trained with {name}={value}, which this version refuses") from error
    return settings.model_copy(update=values)

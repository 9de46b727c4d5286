"""Continual methods by name."""

from service.errors import ConfigurationError
from service.settings import Settings
from trainer.methods.base import Method
from trainer.methods.peso import Peso
from trainer.methods.single_evolving import SingleEvolving

NAMES = ("single-evolving", "peso")


def make_method(settings: Settings) -> Method:
    """The method that ADAPTIDE_METHOD names. Raises ConfigurationError listing the names."""
    match settings.method:
        case "single-evolving":
            return SingleEvolving()
        case "peso":
            return Peso(settings.proximal_weight, settings.proximal_group_by)
    raise ConfigurationError(f"ADAPTIDE_METHOD={settings.method} is unknown; choose one of {', '.join(NAMES)}")

"""Continual methods by name."""

from collections.abc import Callable

from service.errors import ConfigurationError
from service.settings import Settings
from trainer.methods import proximal
from trainer.methods.base import Method
from trainer.methods.cumulative import Scope, method_name
from trainer.methods.inf_lora import InfLora
from trainer.methods.pretrain import Pretrain
from trainer.methods.sd_lora import SdLora
from trainer.methods.single_evolving import SingleEvolving
from trainer.methods.sum_lora import SumLora

METHODS: dict[str, Callable[[Settings], Method]] = {
    "pretrain": lambda settings: Pretrain(),
    "single-evolving": lambda settings: SingleEvolving(),
    "peso": lambda s: proximal.peso(s.proximal_weight, s.proximal_group_by, s.proximal_relative),
    "l2": lambda s: proximal.l2(s.proximal_weight, s.proximal_relative),
    "orthogonal": lambda s: proximal.orthogonal(s.proximal_weight, s.proximal_relative),
    "output-kl": lambda s: proximal.output_kl(s.proximal_weight, s.proximal_relative),
    "rank-kl": lambda s: proximal.rank_kl(s.proximal_weight, s.proximal_relative),
}
CUMULATIVE: dict[str, Callable[[Scope, bool], Method]] = {"sum-lora": SumLora, "sd-lora": SdLora, "inf-lora": InfLora}


def _cumulative(family: str, scope: Scope, inherit: bool) -> Callable[[Settings], Method]:
    return lambda settings: CUMULATIVE[family](scope, inherit)


METHODS |= {
    method_name(family, scope, inherit): _cumulative(family, scope, inherit)
    for family in CUMULATIVE
    for inherit in (False, True)
    for scope in Scope
}
NAMES = tuple(METHODS)


def make_method(settings: Settings) -> Method:
    """The method that ADAPTIDE_METHOD names. Raises ConfigurationError listing the names."""
    if settings.method not in METHODS:
        raise ConfigurationError(f"ADAPTIDE_METHOD={settings.method} is unknown; choose one of {', '.join(NAMES)}")
    return METHODS[settings.method](settings)

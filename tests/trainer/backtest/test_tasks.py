"""What a backtest is asked to run, and what it makes of it."""

import pytest

from service.errors import InvalidRequest
from service.settings import GroupBy, Settings
from trainer.backtest.tasks import METHODS, Plan, Sweep, Task, parse_methods, parse_numbers, parse_ranks


def test_every_method_of_the_contract_is_there() -> None:
    wanted = {"popularity", "sasrec", "pretrain", "single-evolving", "peso", "l2", "orthogonal", "output-kl", "rank-kl"}
    wanted |= {f"{f}-lora-{s}{i}" for f in ("sum", "sd", "inf") for s in ("all", "latest") for i in ("", "-inherit")}
    wanted |= {f"lightgcn-{kind}" for kind in ("pretrain", "finetune", "contrastive", "piw", "pisa")}

    assert set(METHODS) == wanted
    assert len(METHODS) == len(wanted)


def test_methods_are_named_singly_or_in_groups_and_each_is_run_once() -> None:
    assert parse_methods("peso, single-evolving,peso") == ("peso", "single-evolving")
    assert parse_methods("all") == METHODS
    assert parse_methods("two-tower,popularity")[-1] == "popularity"
    assert parse_methods("regularisers")[:2] == ("single-evolving", "peso")


@pytest.mark.parametrize("names", ["pesos", "peso,,pseo", "", " , "])
def test_a_misspelt_or_missing_method_shows_the_list(names: str) -> None:
    with pytest.raises(InvalidRequest, match=r"methods: popularity, .*peso.*groups: all"):
        parse_methods(names)


@pytest.mark.parametrize("text", ["0.5;2", "two", "-1", "0", "nan", "inf"])
def test_a_sweep_takes_numbers_above_0(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--lambdas takes numbers"):
        parse_numbers(text, "--lambdas")


def test_a_number_given_twice_is_one_task() -> None:
    assert parse_numbers("2,0.5,2.0", "--lambdas") == (2.0, 0.5)
    assert parse_ranks("8,8", "--ranks") == (8,)


@pytest.mark.parametrize("text", ["8.5", "1025", "8,0", "wide"])
def test_a_rank_is_a_whole_number_that_the_service_loads(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--ranks takes"):
        parse_ranks(text, "--ranks")
    assert parse_ranks("8,1024", "--ranks") == (8, 1024)


def test_sweeps_apply_only_where_they_mean_something() -> None:
    plan = Plan(
        ("popularity", "l2", "single-evolving", "peso", "sum-lora-all"),
        1,
        {
            Sweep.LAMBDA: (5.0,),
            Sweep.RATIO: (0.1,),
            Sweep.LEARNING_RATE: (1e-3,),
            Sweep.RANK: (32,),
            Sweep.GROUP_BY: ("module",),
        },
    )

    assert [task.name for task in plan.tasks()] == [
        "popularity.seed-0",
        "l2.seed-0",
        "single-evolving.seed-0",
        "peso.seed-0",
        "sum-lora-all.seed-0",
        "peso.lambda=5.0.seed-0",
        "l2.ratio=0.1.seed-0",
        "peso.ratio=0.1.seed-0",
        "single-evolving.learning_rate=0.001.seed-0",
        "peso.learning_rate=0.001.seed-0",
        "single-evolving.rank=32.seed-0",
        "peso.rank=32.seed-0",
        "peso.group_by=module.seed-0",
    ]


def test_seeds_are_whole_comparisons_one_after_the_other() -> None:
    assert [task.seed for task in Plan(("peso", "single-evolving"), 2).tasks()] == [0, 0, 1, 1]


def test_a_variant_changes_its_one_setting() -> None:
    common = Settings(proximal_weight=2.0, learning_rate_update=1e-3)

    plain = Task("peso", 3).settings(common)
    assert (plain.method, plain.seed, plain.proximal_weight, plain.proximal_relative) == ("peso", 3, 2.0, False)
    ratio = Task("peso", 3, (Sweep.RATIO, 0.1)).settings(common)
    assert (ratio.proximal_weight, ratio.proximal_relative) == (0.1, True)
    assert Task("peso", 0, (Sweep.LAMBDA, 8.0)).settings(common).proximal_weight == 8.0
    assert Task("l2", 0, (Sweep.LEARNING_RATE, 0.01)).settings(common).learning_rate_update == 0.01
    wide = Task("peso", 0, (Sweep.RANK, 24)).settings(Settings(lora_rank=8, lora_alpha=12))
    assert (wide.lora_rank, wide.lora_alpha) == (24, 36)
    with pytest.raises(
        InvalidRequest, match="--ranks 3 would change the scale of the adapter as well: alpha / r is 8 / 16"
    ):
        Task("peso", 0, (Sweep.RANK, 3)).settings(Settings(lora_rank=16, lora_alpha=8))
    assert Task("peso", 0, (Sweep.GROUP_BY, "layer")).settings(common).proximal_group_by is GroupBy.LAYER


def test_the_names_are_those_of_what_can_be_made() -> None:
    from trainer import names
    from trainer.methods import METHODS as makers
    from trainer.two_tower import NAMES as rankers

    assert set(names.LORA_METHODS) == set(makers)
    assert set(names.RANKERS) == set(rankers)

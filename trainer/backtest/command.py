"""`adaptide backtest`: the paper's protocol on anyone's data."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from service.cli import Json, print_json
from service.errors import InvalidRequest
from service.kit.machine import cores
from service.settings import GroupBy, load_settings
from service.telemetry import configure_logging
from trainer.backtest.splits import Split
from trainer.backtest.tasks import METHODS, Plan, Sweep, parse_methods, parse_numbers, parse_ranks
from trainer.options import BackboneName, LearningRate, TextEncoderName, Train
from trainer.progress import bars


def backtest(
    dataset: Annotated[
        str, typer.Option(help="movielens-100k, or a folder with items.* and interactions.*, as in the demo.")
    ] = "",
    items: Annotated[Path | None, typer.Option(help="Items: csv, csv.gz or parquet (item_id, title, ..).")] = None,
    events: Annotated[Path | None, typer.Option(help="Interactions: user_id, item_id, timestamp (unix s).")] = None,
    blocks: Annotated[Path | None, typer.Option(help="Ready blocks: block, user_id, position, item_id.")] = None,
    semantic_ids: Annotated[Path | None, typer.Option(help="Their codes: item_id, sid_a .. sid_d.")] = None,
    methods: Annotated[str, typer.Option(help="Names or groups (all, lora, two-tower, regularisers, table1).")] = "all",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds 0 .. N - 1; each has its own base.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for results; run again to go on.")] = None,
    split: Annotated[Split, typer.Option(help="How events become blocks.")] = Split.CHRONOLOGICAL,
    beside: Annotated[
        Path | None, typer.Option(help="A finished backtest of the other split: table 1 shows both, side by side.")
    ] = None,
    lambdas: Annotated[str, typer.Option(help="Lambdas to sweep for peso, e.g. 0.5,2,8.")] = "",
    ratios: Annotated[
        str, typer.Option(help="Shares of the first step's gradient for every regulariser, e.g. 0.01,0.1.")
    ] = "",
    learning_rates: Annotated[str, typer.Option(help="Rates to sweep for single-evolving and peso.")] = "",
    ranks: Annotated[str, typer.Option(help="LoRA ranks for the same two, the scale alpha / r kept, e.g. 8,32.")] = "",
    group_by: Annotated[str, typer.Option(help="Groupings to try for peso: module,rank,layer.")] = "",
    backbone: BackboneName = "tiny",
    hidden: Annotated[int, typer.Option(min=16, help="Of tiny: hidden size, a multiple of 32.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Of tiny.")] = 4,
    train: Train = "lora",
    base_learning_rate: LearningRate = None,
    base_epochs: Annotated[
        int, typer.Option(min=0, help="Passes over D_1 at most; 0: 12 for tiny, 4 for a language model.")
    ] = 0,
    bases: Annotated[
        Path | None, typer.Option(help="An earlier --out whose bases are taken: same data, recipe and base settings.")
    ] = None,
    quantiser: Annotated[str, typer.Option(help="rqvae or rqkmeans.")] = "rqvae",
    text_encoder: TextEncoderName = "tfidf",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core, one on a GPU.")] = 0,
    so_far: Annotated[
        bool, typer.Option("--so-far", help="Report on what is done in --out, also while it is being run; run nothing.")
    ] = False,
    list_methods: Annotated[bool, typer.Option("--list-methods", help="Print the methods and end.")] = False,
    as_json: Json = False,
) -> None:
    """Every method over the same blocks, seeds and users: results.json, report.html and a table.

    Training settings are those of the updater: ADAPTIDE_UPDATE_EPOCHS, ADAPTIDE_LEARNING_RATE_UPDATE, ..
    """
    if list_methods:
        _print_methods(METHODS, as_json)
        return
    groupings = tuple(name for name in group_by.split(",") if name)
    if wrong := [name for name in groupings if name not in {g.value for g in GroupBy}]:
        raise InvalidRequest(f"--group-by {wrong[0]!r} is not known; choose among {', '.join(GroupBy)}")
    sweeps: dict[Sweep, tuple[float | str, ...]] = {
        Sweep.LAMBDA: parse_numbers(lambdas, "--lambdas"),
        Sweep.RATIO: parse_numbers(ratios, "--ratios"),
        Sweep.LEARNING_RATE: parse_numbers(learning_rates, "--learning-rates"),
        Sweep.RANK: parse_ranks(ranks, "--ranks"),
        Sweep.GROUP_BY: groupings,
    }
    plan = Plan(parse_methods(methods), seeds, {sweep: values for sweep, values in sweeps.items() if values})
    if out is None:
        raise InvalidRequest("--out is missing: name a folder for bases, results and report")
    given = [bool(source) for source in (dataset, items, events, blocks, semantic_ids)]
    if given not in ([1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]):
        raise InvalidRequest("give --dataset, or --items and --events, or --blocks and --semantic-ids")
    if blocks and split is not Split.CHRONOLOGICAL:
        raise InvalidRequest("--split is for raw events; ready blocks come as they are split")
    other = _finished(beside) if beside else None

    from service.generation.backbone import pick_device
    from trainer.backtest.report import (  # seconds to import: not to be misread first
        markdown,
        summarise,
        unfinished,
        write_report,
    )
    from trainer.backtest.runner import Backtest, cannot_write
    from trainer.backtest.sources import from_blocks, from_dataset, from_raw
    from trainer.datasets import load_dataset
    from trainer.language_base import TrainMode
    from trainer.recipe import make_recipe

    recipe = make_recipe(
        backbone,
        hidden=hidden,
        layers=layers,
        epochs=base_epochs,
        quantiser=quantiser,
        text_encoder=text_encoder,
        train=train,
        learning_rate=base_learning_rate,
    )
    if ranks and recipe.language is not None and recipe.language.train is TrainMode.LORA:
        raise InvalidRequest(
            "--ranks changes nothing here: the adapter that D_1 gives a language model has its rank, and later ones go "
            "on from it; give --train full, or ADAPTIDE_LORA_RANK and another --out for each rank"
        )
    if bases is not None and not (bases.expanduser() / "bases").is_dir():
        raise InvalidRequest(f"--bases {bases}: there are no bases in it; name the --out of an earlier backtest")
    settings = load_settings()
    for task in plan.tasks():  # a value that a task cannot have is refused before anything is done
        task.settings(settings)
    configure_logging("WARNING")
    if dataset:
        data = from_dataset(load_dataset(dataset, settings.home_dir), split.value)
    elif items and events:
        data = from_raw(items, events, split=split.value)
    else:
        assert blocks is not None  # noqa: S101  # asked above
        assert semantic_ids is not None  # noqa: S101
        data = from_blocks(blocks, semantic_ids)
    made = Backtest(
        data,
        recipe,
        settings,
        plan,
        out.expanduser().resolve(),
        workers or (1 if pick_device(settings.device).type == "cuda" else cores()),
        " ".join(["adaptide", *map(shlex.quote, sys.argv[1:])]),
        "ready blocks" if blocks else split.value,
        bases.expanduser().resolve() if bases else None,
    )
    if so_far:
        raw = made.so_far()
    else:
        with bars() as report:
            raw = made.run(report)
    results = summarise(raw)
    if other is not None:
        _check_beside(other, results)
        results["beside"] = {"split": other["data"]["split"], "methods": other["methods"]}
    try:
        _write(made.out, raw, results)
        write_report(raw, results, made.out)
    except OSError as error:
        raise cannot_write(made.out, error) from error
    if as_json:
        print_json(results)
        return
    typer.echo(markdown(results))
    if not results["complete"]:
        typer.echo(f"\n{unfinished(results)}")
    typer.echo(f"\n{made.out}/report.html has the plots, results.json every number")


def _print_methods(names: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json({"methods": list(names)})
    else:
        typer.echo("\n".join(names))


def _finished(folder: Path) -> dict[str, Any]:
    wrong = InvalidRequest(f"--beside {folder}: there is no results.json of a finished backtest in it")
    try:
        found: Any = orjson.loads((folder.expanduser() / "results.json").read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise wrong from error
    if not isinstance(found, dict) or not {"data", "methods"} <= found.keys() or not found.get("complete"):
        raise wrong
    return found


def _check_beside(other: dict[str, Any], own: dict[str, Any]) -> None:
    """Two splits of the same interactions, or their gains say nothing side by side."""
    if other["data"]["split"] == own["data"]["split"]:
        raise InvalidRequest(f"--beside wants the other split, and that one is {own['data']['split']} too")
    if any(other["data"][fact] != own["data"][fact] for fact in ("name", "users", "items")):
        raise InvalidRequest(
            f"--beside wants the same data under the other split: that one is {other['data']['name']} with "
            f"{other['data']['users']} users and {other['data']['items']} items"
        )


def _write(out: Path, raw: dict[str, Any], results: dict[str, Any]) -> None:
    for name, value in (("raw.json", raw), ("results.json", results)):
        partial = out / f"{name}.partial"
        partial.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
        partial.replace(out / name)

"""The console script `adaptide`: the commands of both halves."""

import os
from functools import partial
from typing import Annotated

# Before anything imports torch: a compute thread that waits for the others may spin a moment (GNU OpenMP's default is a
# long one). Long spins make training many times slower as soon as another process wants a core (docs/decisions/0006).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import typer

import service.adapters.artifact_commands
import service.adapters.commands
import service.cli
import service.quality.commands
import service.recommend.commands
import service.trials.commands  # beside those of adapters
import service.users.commands
import trainer.backtest.command
import trainer.bench
import trainer.exporter
import trainer.importer
from service.adapters.bus import Change
from service.adapters.place import open_artifacts, require_writable
from service.cli import Json, opened, print_json
from service.errors import InvalidRequest
from service.kit.allocator import keep_freed_memory
from service.kit.clock import utc_now
from service.settings import load_settings
from service.shared import announcements
from service.telemetry import configure_logging
from service.tracing import tracing
from trainer.options import BackboneName, LearningRate, TextEncoderName, Train
from trainer.progress import bars

HIGHEST_RATE = 1e-3
"""Of a language model's update, before a word is said: SmolLM2 was worse at it than at 3e-4 (docs/results)."""

app = service.cli.app
base = typer.Typer(no_args_is_help=True, help="Bases: backbone, tokenizer and semantic IDs, trained on what is stored.")
updater = typer.Typer(no_args_is_help=True, help="The updater: windows into adapters.")
app.add_typer(base, name="base")
app.add_typer(updater, name="trainer")
app.add_typer(service.adapters.commands.app, name="adapters")
app.add_typer(service.adapters.artifact_commands.app, name="artifacts")
app.add_typer(service.users.commands.app, name="users")
app.add_typer(trainer.importer.app, name="import")
app.add_typer(trainer.exporter.app, name="export")
app.add_typer(trainer.bench.app, name="bench")
app.command()(service.recommend.commands.replay)
app.command()(trainer.backtest.command.backtest)
app.command()(service.quality.commands.quality)


def main() -> None:
    """Exit status: 0 good, 1 failed, 2 wrong use."""
    keep_freed_memory()
    service.cli.run(app)


@base.command()
def build(
    backbone: BackboneName = "tiny",
    hidden: Annotated[int, typer.Option(min=16, help="Of tiny: hidden size, a multiple of 32.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Of tiny.")] = 6,
    train: Train = "lora",
    learning_rate: LearningRate = None,
    epochs: Annotated[int, typer.Option(min=0, help="Passes at most; 0: 12 for tiny, 4 for a language model.")] = 0,
    quantiser: Annotated[str, typer.Option(help="rqvae or rqkmeans.")] = "rqvae",
    text_encoder: TextEncoderName = "tfidf",
    as_json: Json = False,
) -> None:
    """Train a base on every event stored so far and serve it."""
    from trainer.base import build_base
    from trainer.recipe import make_recipe

    recipe = make_recipe(
        backbone,
        hidden=hidden,
        layers=layers,
        epochs=epochs,
        quantiser=quantiser,
        text_encoder=text_encoder,
        train=train,
        learning_rate=learning_rate,
    )
    settings = load_settings()
    configure_logging("WARNING")  # log lines would tear the bars apart
    artifacts = open_artifacts(settings)
    require_writable(artifacts)  # now, not after an hour of training
    with announcements(settings) as announce, opened(settings) as database, bars() as report:
        built = build_base(database, artifacts, settings, utc_now, recipe, actor="cli", report=report)
        announce(Change.POINTER)
    if as_json:
        print_json(
            {
                "base": built.base_id,
                "adapter_version": built.adapter_version,
                "revision": built.revision,
                "metrics": built.metrics,
                "steps": built.steps,
            }
        )
        return
    typer.echo(f"base {built.base_id} serves with adapter {built.adapter_version} (revision {built.revision})")
    for name in ("base", "popularity"):
        found = ", ".join(f"{metric} {value:.4f}" for metric, value in built.metrics[name].items())
        typer.echo(f"  {name}: {found} on {built.metrics['users']} users' last items")
    if recipe.language is not None and settings.learning_rate_update > HIGHEST_RATE:
        typer.echo(
            f"note: updates of a language model want a rate of about 3e-4, and ADAPTIDE_LEARNING_RATE_UPDATE is "
            f"{settings.learning_rate_update:g}; the README lists the settings that go with one",
            err=True,
        )


@updater.command("run")
def run_updater() -> None:
    """Seal, train, judge and promote whatever is due, until SIGTERM or Ctrl-C."""
    from trainer import schedule, telemetry
    from trainer.quality import QualityWatch
    from trainer.updater import Updater
    from trainer.upkeep import upkeep

    settings = load_settings()
    configure_logging(settings.log_level)
    artifacts = open_artifacts(settings)
    with (
        announcements(settings, lasting=True) as announce,
        opened(settings) as database,
        telemetry.shown(settings.host, settings.trainer_port),
        tracing(settings, "trainer") as traces,
    ):
        require_writable(artifacts)
        made = Updater(database, settings, utc_now, artifacts, announce, traces)
        watch = QualityWatch(database, utc_now, settings, artifacts, made.owner, announce)
        keep = partial(upkeep, database, utc_now, settings, made.owner)
        schedule.run(made.tick, settings.tick_interval, keep, watch.look)


@updater.command()
def update(
    until: Annotated[str, typer.Option(help="`now`, or the last event sequence number to learn from.")] = "now",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Learn and judge, but write and promote nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Close the open window and bring every waiting one to its outcome, now."""
    from service.trials.promotion import under_way
    from trainer.outcome import open_range, rehearsal_summary, window_summary
    from trainer.updater import Updater

    if until != "now" and not until.isdecimal():
        raise InvalidRequest("--until takes `now` or an event sequence number")
    through_seq = None if until == "now" else int(until)
    settings = load_settings()
    configure_logging("WARNING")
    artifacts = open_artifacts(settings)
    with (
        announcements(settings, lasting=True) as announce,
        opened(settings) as database,
        tracing(settings, "trainer") as traces,
        bars() as report,
    ):
        if not dry_run:
            require_writable(artifacts)
        made = Updater(database, settings, utc_now, artifacts, announce, traces)
        canary = None
        if dry_run:
            results = [rehearsal_summary(made.rehearse(open_range(database, through_seq), report))]
        else:
            results = [window_summary(window) for window in made.close_and_work(through_seq, report)]
            with database.read() as connection:
                canary = under_way(connection)
    if as_json:
        print_json({"dry_run": dry_run, "windows": results, "canary": canary and canary.adapter_version})
        return
    for result in results:
        reason = f" ({result['reason']})" if result["reason"] else ""
        typer.echo(f"window {result['window'] or 'open'}: {result['verdict']}{reason}")
        for subject, found in result["metrics"].items():
            typer.echo(f"  {subject}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    if canary is not None:
        over_at = canary.started_at + settings.canary_duration
        typer.echo(
            f"no other window is closed or trained before the canary of {canary.adapter_version} is over: it answers "
            f"{canary.share:.2%} of users until {over_at:%Y-%m-%d %H:%M} UTC, and is promoted then if it held. Not "
            f"to wait: adaptide adapters promote {canary.adapter_version}, or adaptide adapters trial --end"
        )
    elif not results:
        typer.echo("no event has arrived since the last window, and none waits for its outcome")


@updater.command()
def retrain(version: Annotated[str, typer.Argument(help="An adapter's.")], as_json: Json = False) -> None:
    """Train an adapter's window again and compare the weights; nothing is published. Exit status 0 when they are the
    same to the last bit, 1 when not."""
    from dataclasses import asdict

    from trainer.retrain import retrain as train_again

    settings = load_settings()
    configure_logging("WARNING")
    with opened(settings) as database, bars() as report:
        found = train_again(database, open_artifacts(settings), settings, version, report)
    if as_json:
        print_json(asdict(found))
        raise typer.Exit(0 if found.identical else 1)
    for note in found.notes:
        typer.echo(f"note: {note}")
    if found.impossible is not None:
        typer.echo(f"{version} cannot be trained again: {found.impossible}")
    elif found.identical:
        typer.echo(f"identical: {version} has the same weights and the same digest {found.digest_then}")
    else:
        difference = "-" if found.largest_difference is None else f"{found.largest_difference:.3g}"
        typer.echo(f"NOT identical: {found.digest_again or 'nothing'}, not {found.digest_then}")
        typer.echo(f"  largest difference of a weight: {difference}")
    raise typer.Exit(0 if found.identical else 1)


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the files of the model that serves.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, reachable, migrated and verified, and what to do about what is not. Exit status 1 when
    something does not work."""
    import trainer.doctor
    from service.doctor.commands import run_doctor

    run_doctor(trainer.doctor.checks, quick=quick, as_json=as_json)


@app.command()
def demo(
    dataset: Annotated[
        str, typer.Option(help="movielens-100k, or a folder with items.* and interactions.*.")
    ] = "movielens-100k",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    once: Annotated[bool, typer.Option("--once", help="End after the last window and print the table.")] = False,
    as_json: Json = False,
) -> None:
    """Real data, a base, and its last 40 % replayed live through four windows, on 127.0.0.1."""
    from trainer.demo import Demo

    settings = load_settings()
    configure_logging("WARNING")
    Demo(settings, dataset, port, keep_serving=not once, as_json=as_json).run()


if __name__ == "__main__":
    main()

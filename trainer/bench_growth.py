"""`adaptide bench events`, `history`, `update` and `replicas`: what each costs, and how that grows."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import Json, print_json
from service.errors import InvalidRequest
from service.telemetry import configure_logging
from trainer.bench_stores import POSTGRES_URL, servers
from trainer.options import whole_numbers

if TYPE_CHECKING:  # torch is loaded only where it is used
    from trainer.bench_update import UpdateRow

Postgres = Annotated[
    str | None,
    typer.Option(help=f"A PostgreSQL server to measure on too, as a URL; otherwise {POSTGRES_URL}, if it answers."),
]


def events(
    postgres: Postgres = None,
    writers: Annotated[str, typer.Option(help="Writers at once, e.g. 1,4.")] = "1,4",
    batches: Annotated[int, typer.Option(min=1, help="Batches of 500 in a round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Events into each store: through the service, over HTTP, an INSERT for each, and in bulk."""
    from trainer.bench_events import bench_events

    rows = [
        row
        for server in servers(postgres)
        for count in whole_numbers(writers, "--writers")
        for row in bench_events(server, count, batches=batches, rounds=rounds, seed=seed)
    ]
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.store:<10} {row.writers} writers  {row.way:<7} {row.events_per_s:8,.0f} events/s "
            f"({row.fewest:,.0f} to {row.most:,.0f})  {row.of_bulk:.2f} x bulk, {row.over_rows:.2f} x row by row"
        )


def history(
    postgres: Postgres = None,
    stored: Annotated[int, typer.Option(min=1_000, help="Events in the store.")] = 100_000,
    reads: Annotated[int, typer.Option(min=1, help="Random users that are read.")] = 1_000,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """A user's past out of a store of many events, and the plan by which it is read."""
    from trainer.bench_history import bench_history

    rows = [row for server in servers(postgres) for row in bench_history(server, stored, reads=reads, seed=seed)]
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.store:<10} {row.stored:,} events  {row.read:<6} {row.warm_median_ms:.2f} ms, p99 "
            f"{row.warm_p99_ms:.2f}; for the first time {row.cold_median_ms:.2f} ms, p99 {row.cold_p99_ms:.2f}"
        )
        for plan in row.plan:
            typer.echo(f"    {plan}")


def capacity(
    postgres: Postgres = None,
    stored: Annotated[int, typer.Option("--events", min=1_000, help="Events in the store.")] = 200_000,
    recommendations: Annotated[int, typer.Option(min=100, help="Stored recommendations.")] = 20_000,
    items: Annotated[int, typer.Option(min=100, help="Items in the catalogue.")] = 100_000,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Bytes and time of one event, one stored recommendation and one item: what docs/scale.md counts with."""
    from trainer.bench_capacity import bench_capacity

    configure_logging("WARNING")
    rows = [
        row
        for server in servers(postgres)
        for row in bench_capacity(server, events=stored, recommendations=recommendations, items=items, seed=seed)
    ]
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.store:<10} {row.what:<28} {row.bytes_each:7,.0f} bytes, {1e6 * row.seconds_each:7.1f} µs each "
            f"(of {row.count:,})"
        )


def update(
    postgres: Postgres = None,
    grows: Annotated[str, typer.Option(help="What grows, one at a time.")] = "window,history,lives,catalogue",
    factors: Annotated[str, typer.Option(help="How many times as large, e.g. 1,10,100.")] = "1,10",
    windows: Annotated[str, typer.Option(help="The same for the window.")] = "1,2,4",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """An update's seconds, step by step, as the window, the history before it or the catalogue grow."""
    from trainer.bench_update import GROWS, bench_update

    wanted = grows.split(",")
    if not set(wanted) <= set(GROWS):
        raise InvalidRequest(f"--grows takes some of {', '.join(GROWS)}, not {grows!r}")
    sizes = whole_numbers(factors, "--factors")
    shares = whole_numbers(windows, "--windows")
    configure_logging("WARNING")
    rows: list[UpdateRow] = []
    for server in servers(postgres):
        for what in wanted:
            for factor in shares if what == "window" else sizes:
                for row in bench_update(server, what, factor, seed=seed):
                    rows.append(row)
                    if not as_json:
                        _print_update(row)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})


def _print_update(row: "UpdateRow") -> None:
    steps = ", ".join(f"{step} {seconds:.3f}" for step, seconds in row.seconds.items())
    typer.echo(
        f"{row.store:<10} {row.grows} x {row.factor}, {row.run}: window {row.window:,}, history {row.history:,}, "
        f"{row.items:,} items: {steps}"
    )


def replicas(
    postgres: Postgres = None,
    counts: Annotated[str, typer.Option("--replicas", help="How many servers, e.g. 1,2,4.")] = "1,2,4",
    clients: Annotated[int, typer.Option(min=1, help="Closed loops on each.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each.")] = 1,
    hidden: Annotated[int, typer.Option(min=32, help="Hidden size of a random Llama, a multiple of 32.")] = 256,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    items: Annotated[int, typer.Option(min=100, help="Of the catalogue.")] = 20_000,
    users: Annotated[int, typer.Option(min=8, help="Users with 25 events each.")] = 500,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each loop.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Requests a second by the number of replicas over one store (PostgreSQL if it answers); every reply is checked."""
    from trainer.bench_replicas import bench_replicas
    from trainer.bench_shop import ShopSize

    configure_logging("WARNING")
    size = ShopSize(hidden, layers, items, users, seed)
    wanted = sorted(set(whole_numbers(counts, "--replicas")))
    rows = bench_replicas(
        servers(postgres)[-1], size, wanted, clients=clients, threads=threads, seconds=seconds, repeats=repeats
    )
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.replicas} replicas on {row.store}, {row.cores} cores, {row.threads} threads and {row.clients} "
            f"clients each: {row.requests_per_s:.0f} requests/s, {row.ratio:.2f} x of {rows[0].replicas}; "
            f"p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms; clients took {row.client_cpu:.2f} cores; "
            f"errors {row.errors}, wrong {row.wrong}, of {row.requests}"
        )

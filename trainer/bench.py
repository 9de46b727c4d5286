"""`adaptide bench`: each figure beside its peer's, measured in the same run."""

from dataclasses import asdict
from typing import Annotated

import typer

from service.cli import Json, print_json
from service.errors import InvalidRequest
from service.telemetry import configure_logging
from trainer import bench_growth
from trainer.options import whole_numbers as _whole_numbers

app = typer.Typer(no_args_is_help=True, help="Benchmarks, each with its peer measured in the same run.")


@app.callback()
def bench() -> None:
    """Benchmarks, each with its peer measured in the same run."""


@app.command()
def engine(
    model: Annotated[
        str, typer.Option(help="tiny (a random Llama 256 x 6), smollm2, or llama-1b-shape (random weights, for GPUs).")
    ] = "tiny",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batches: Annotated[str, typer.Option(help="Requests searched together, e.g. 1,16,64.")] = "1,8",
    beams: Annotated[str, typer.Option(help="Beam widths, e.g. 10,50.")] = "10",
    items: Annotated[int, typer.Option(min=100)] = 20_000,
    history: Annotated[
        int | None,
        typer.Option(min=1, help="Past items in a prompt; 20, of llama-1b-shape 24 (180 tokens)."),
    ] = None,
    peer: Annotated[bool, typer.Option(help="Run transformers' generate() too, up to batch 16.")] = True,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="On a GPU: fuse the passes first.")] = True,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """The constrained search: transformers' generate(), ours, and one bare forward pass."""
    from trainer.bench_engine import bench_engine

    rows = bench_engine(
        model,
        device,
        _whole_numbers(batches, "--batches"),
        items,
        history,
        seed,
        beams=tuple(_whole_numbers(beams, "--beams")),
        peer=peer,
        compiled=compiled,
    )
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        generate = (
            f", generate() {row.generate_ms:.1f} ms: {row.speedup:.1f} x ({row.fewest:.1f} to {row.most:.1f}), "
            f"{'same items' if row.same_items else 'OTHER ITEMS'}"
            if row.generate_ms is not None
            else ""
        )
        whole = f" ({row.whole_prompt_ms:.1f} with the whole prompt)" if row.whole_prompt_ms is not None else ""
        floor = f"; floor {row.floor_ms:.1f} ms" if row.floor_ms is not None else ""
        typer.echo(
            f"{row.model} {row.dtype} on {row.device}, batch {row.batch}, {row.prompt_tokens} tokens, "
            f"beam {row.beams}, {row.items:,} items: {row.ours_ms:.1f} ms{whole}, {row.requests_per_s:.0f} requests/s"
            f"{generate}; bare forward pass {row.forward_ms:.1f} ms, ours {row.over_forward:.2f} x of it{floor}"
        )


@app.command()
def evaluation(
    hidden: Annotated[int, typer.Option(min=32, help="Hidden size of a random Llama.")] = 128,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    users: Annotated[int, typer.Option(min=64)] = 512,
    items: Annotated[int, typer.Option(min=100)] = 12_000,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Ranking many users: transformers' generate(), our engine one user at a time, our engine in batches."""
    from trainer.bench_evaluation import bench_evaluation

    rows = bench_evaluation(hidden, layers, users, items, seed)
    batched = rows[-1]
    if as_json:
        print_json(
            {"rows": [{**asdict(row), "batched_is_faster": row.milliseconds / batched.milliseconds} for row in rows]}
        )
        return
    for row in rows:
        typer.echo(
            f"{row.way:<28} {row.milliseconds:8.2f} ms a user ({row.fewest:.2f} to {row.most:.2f})  "
            f"batched: {row.milliseconds / batched.milliseconds:5.1f} x faster  same lists {row.same}/{row.compared}"
        )


@app.command()
def training(
    model: Annotated[str, typer.Option(help="tiny (a random Llama), smollm2 or llama-1b-shape (for a GPU).")] = "tiny",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    hidden: Annotated[int, typer.Option(min=32, help="Hidden size of tiny, a multiple of 32.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Of tiny.")] = 4,
    batches: Annotated[str, typer.Option(help="Sequences in a step, e.g. 8,32.")] = "8,32",
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Training a LoRA: our step beside transformers + peft as commonly written, over the same examples."""
    from trainer.bench_training import bench_training

    rows = [
        bench_training(hidden, layers, batch, seed, model=model, device=device, repeats=repeats)
        for batch in _whole_numbers(batches, "--batches")
    ]
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.model} {row.dtype} on {row.device}, {row.batch} sequences a step: "
            f"{row.ours_examples_per_s:.0f} examples a second, "
            f"transformers + peft {row.peer_examples_per_s:.0f}: {row.speedup:.1f} x ({row.fewest:.1f} to "
            f"{row.most:.1f}), {row.layers_speedup:.2f} x of it the layers; gradients within "
            f"{row.max_gradient_difference:.1e}; MFU {row.mfu:.2f} (peer {row.peer_mfu:.2f})"
        )


@app.command()
def choices(
    hidden: Annotated[int, typer.Option(min=32, help="Hidden size of a random Llama.")] = 256,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    items: Annotated[int, typer.Option(min=100)] = 100_000,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Filters, diversity, exploration, explanations and "more like this" beside a plain recommendation."""
    from trainer.bench_choices import bench_choices

    rows = bench_choices(hidden, layers, items, seed)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.way:<34} {row.milliseconds:8.1f} ms ({row.fewest:.1f} to {row.most:.1f}), "
            f"{row.cpu_ms:.1f} ms of processor time"
        )


@app.command()
def trie(
    items: Annotated[str, typer.Option(help="Catalogue sizes.")] = "10000,100000,1000000,10000000",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """The index of valid semantic IDs, at growing catalogues of random codes."""
    from trainer.bench_trie import bench_trie

    rows = [bench_trie(count, seed) for count in _whole_numbers(items, "--items")]
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.items:>10,} items: built in {row.build_s:.2f} s, {row.bytes_per_item:.0f} bytes an item; one item "
            f"more {row.add_ms:.0f} ms, one less {row.hide_ms:.0f} ms; a step of 64 x 10 beams "
            f"{row.mask_ms:.2f} ms; 500 exclusions {row.exclude_ms:.2f} ms"
        )


Hidden = Annotated[int, typer.Option(min=32, help="Hidden size of a random Llama, a multiple of 32.")]
Layers = Annotated[int, typer.Option(min=1)]
Items = Annotated[int, typer.Option(min=100, help="Of the catalogue.")]
Users = Annotated[int, typer.Option(min=8, help="Users with 25 events each.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of both engines; 0: chosen as the server does.")]


@app.command()
def service(
    hidden: Hidden = 256,
    layers: Layers = 6,
    items: Items = 20_000,
    users: Users = 500,
    concurrency: Annotated[str, typer.Option(help="Clients of the closed loops.")] = "1,8,32",
    rates: Annotated[str, typer.Option(help="Open loops, in percent of the best closed loop; empty: none.")] = "50,80",
    threads: Threads = 0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each loop.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """The real server over HTTP on SQLite, beside its engine alone at the same batch size; every reply is checked."""
    from trainer.bench_service import bench_service
    from trainer.bench_shop import ShopSize

    configure_logging("WARNING")
    size = ShopSize(hidden, layers, items, users, seed)
    shares = [share / 100 for share in _whole_numbers(rates, "--rates")] if rates else []
    rows = bench_service(size, _whole_numbers(concurrency, "--concurrency"), shares, threads, seconds, repeats)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        how = f"{row.concurrency} clients" if row.rate is None else f"{row.rate:.0f} requests a second"
        typer.echo(
            f"{how}: {row.requests_per_s:.0f} a second, p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms "
            f"({row.p99_over_p50:.1f} x); engine alone, batch {row.engine_batch}: {row.engine_requests_per_s:.0f} a "
            f"second, {row.engine_ms:.1f} ms; HTTP adds {row.added_ms:.1f} ms, keeps {row.share:.2f} of it; batches of "
            f"{row.batch:.1f}; CPU a request {row.server_cpu_ms:.2f} ms, engine alone {row.engine_cpu_ms:.2f} ms; "
            f"errors {row.errors}, wrong {row.wrong}, of {row.requests}"
        )


@app.command()
def swap(
    hidden: Hidden = 256,
    layers: Layers = 6,
    items: Items = 20_000,
    users: Users = 500,
    swaps: Annotated[int, typer.Option(min=2, help="To and fro between two adapters, an even number.")] = 50,
    load: Annotated[int, typer.Option(min=1, max=99, help="In percent of what the engine alone does singly.")] = 30,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds from one swap to the next at least.")] = 0.5,
    threads: Threads = 0,
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Adapter swaps through the registry under steady load, beside the same load without; every reply is checked."""
    from trainer.bench_shop import ShopSize
    from trainer.bench_swap import bench_swap

    configure_logging("WARNING")
    if swaps % 2:
        raise InvalidRequest("--swaps takes an even number: the first adapter serves before and after")
    rows = bench_swap(ShopSize(hidden, layers, items, users, seed), swaps, load / 100, threads, pause, repeats)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.swaps} swaps at {row.rate:.0f} requests a second: p99 {row.p99_ms:.1f} ms, without swaps "
            f"{row.quiet_p99_ms:.1f} ms: {row.ratio:.2f} x; p50 {row.p50_ms:.1f} and {row.quiet_p50_ms:.1f} ms; a swap "
            f"{row.swap_ms:.0f} ms; of {row.requests} replies {row.failed} failed, {row.mixed} mixed; memory "
            f"{row.resident_before_mib:.0f} -> {row.resident_after_mib:.0f} MiB"
        )


@app.command()
def trial(
    hidden: Hidden = 256,
    layers: Layers = 6,
    items: Items = 20_000,
    users: Users = 500,
    load: Annotated[int, typer.Option(min=1, max=99, help="In percent of what the engine alone does singly.")] = 30,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each run.")] = 10.0,
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of users in the canary.")] = 0.1,
    threads: Threads = 0,
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """The same load without a trial, beside a canary and beside a shadow of everybody; every reply is checked."""
    from trainer.bench_shop import ShopSize
    from trainer.bench_trial import bench_trial

    configure_logging("WARNING")
    rows = bench_trial(ShopSize(hidden, layers, items, users, seed), load / 100, threads, seconds, share, repeats)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    for row in rows:
        typer.echo(
            f"{row.trial} of {row.share:.0%} at {row.rate:.0f} requests a second: p50 {row.p50_ms:.1f} ms, p99 "
            f"{row.p99_ms:.1f} ms; of {row.requests} replies {row.candidate} by the candidate, {row.failed} failed, "
            f"{row.wrong} wrong; {row.shadowed} in the shadow; memory {row.resident_mib:.0f} MiB"
        )


for command in (
    bench_growth.events,
    bench_growth.history,
    bench_growth.update,
    bench_growth.capacity,
    bench_growth.replicas,
):
    app.command()(command)

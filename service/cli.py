"""The commands of the online half: serve, db, keys. `app` is mounted by trainer.cli; `run` ends either of them."""

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table

from service.access.schemas import ApiKey, Scope
from service.access.service import AccessService
from service.errors import AdaptideError, ConfigurationError, InvalidRequest
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings, load_settings
from service.store import open_store, require_usable
from service.telemetry import configure_logging

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)
db = typer.Typer(no_args_is_help=True, help="The store's schema.")
keys = typer.Typer(no_args_is_help=True, help="API keys.")
app.add_typer(db, name="db")
app.add_typer(keys, name="keys")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
KeyId = Annotated[str, typer.Argument(help="The part of the key between the underscores.")]
# The computing thread takes the interpreter's lock at every operation; by default it may wait 5 ms for it each time.
SWITCH_S = 0.0005
SEND_BYTES = 128 * 1024
"""What the system may hold of a connection's replies (Linux takes twice that); by itself it goes up to 4 MiB."""
RECEIVE_BYTES = 32 * 1024
"""What a connection can bring at once, before anybody looked at its key (likewise): by itself 256 KiB and more."""


def run(commands: typer.Typer) -> NoReturn:
    """Run `commands` on this process's arguments. Exit status: 0 good, 1 failed, 2 wrong use (one line on stderr)."""
    try:
        commands()
    except AdaptideError as error:
        complain(error)
        sys.exit(2 if isinstance(error, InvalidRequest) else 1)
    sys.exit(0)


def complain(error: AdaptideError) -> None:
    """Say on standard error what happened and what to do."""
    line = Console(stderr=True, soft_wrap=True)
    line.print("error:", style="bold red", end=" ")
    line.print(" ".join(error.detail.split()), markup=False, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS).decode())


@contextmanager
def opened(settings: Settings, *, at_head: bool = True) -> Iterator[Database]:
    """The store that `settings` name, closed afterwards.

    Raises ConfigurationError as open_store does, for a server that is too old, or when `at_head` and the schema is
    another version's; StoreUnavailable when no server answers.
    """
    database = open_store(settings)
    try:
        if at_head:
            require_usable(database)
        else:
            database.require_supported()
        yield database
    finally:
        database.close()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; ADAPTIDE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. ADAPTIDE_PORT.")] = None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C."""
    import signal  # the server is loaded only where it is run

    import uvicorn

    from service.app import create_app
    from service.http.door import door
    from service.http.server import DrainingServer, end_with_threads

    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))  # until the server takes over
    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level)
    with opened(settings):
        pass  # a wrong schema is said in one line here; the application checks again when it starts
    app = create_app(settings)  # before the port: a wrong setting is said in one line, too
    listener = bind(settings.host, settings.port)
    services = app.state.services
    config = uvicorn.Config(
        app,
        http=door(services.houses, lambda: services.readiness.draining),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.trusted_proxies,
    )
    server = DrainingServer(config, services.readiness.drain, settings.drain)
    sys.setswitchinterval(SWITCH_S)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    about = "dashboard: /dashboard" + (", API documentation: /docs" if settings.serves_docs else "")
    typer.echo(f"Adaptide listens on http://{shown}:{listener.getsockname()[1]} ({about})")
    # uvicorn stops gracefully and then raises the signal again, which would end the process with its status. What comes
    # before it listens to signals, it finds out when it has started.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
    if not server.started:
        raise ConfigurationError("the service could not start; the log above says why")
    end_with_threads()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigurationError when the address is in use or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"{host} is no address that can be bound: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # of its connections as well
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        why = f"port {port} on {host} cannot be bound ({error.strerror})"
        raise ConfigurationError(f"{why}: stop what uses it, or choose another with --port or ADAPTIDE_PORT") from error
    return listener


@db.command()
def upgrade(as_json: Json = False) -> None:
    """Bring the store's schema to this version's. Safe to repeat."""
    with opened(load_settings(), at_head=False) as database:
        migrate.upgrade(database)
        _say_revision(database, as_json)


@db.command()
def current(as_json: Json = False) -> None:
    """Say which schema version the store is at."""
    with opened(load_settings(), at_head=False) as database:
        _say_revision(database, as_json)


@db.command()
def check(as_json: Json = False) -> None:
    """Exit with 1 unless the store's schema is this version's."""
    with opened(load_settings()) as database:
        _say_revision(database, as_json)


def _say_revision(database: Database, as_json: bool) -> None:
    found, wanted = migrate.current(database), migrate.head(database)
    if as_json:
        print_json({"current": found, "head": wanted, "up_to_date": found == wanted})
    else:
        typer.echo(f"schema {found or 'none'} (this version's: {wanted})")


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key it is, such as `web shop`.")],
    scope: Annotated[list[str], typer.Option(help="read, write or admin; repeat it or separate by commas.")],
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3650)] = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once."""
    expires_in = timedelta(days=expires_in_days) if expires_in_days else None
    with opened(load_settings()) as database:
        access = AccessService(database, utc_now)
        created = access.create(name, parse_scopes(scope), actor="cli", expires_in=expires_in)
    if as_json:
        print_json(_key(created.key) | {"token": created.token})
    else:
        typer.echo(created.token)
        typer.echo("Keep it: it cannot be shown again.", err=True)


@keys.command("list")
def list_keys(as_json: Json = False) -> None:
    """Every key, without its secret."""
    with opened(load_settings()) as database:
        found = [_key(key) for key in AccessService(database, utc_now).list()]
    if as_json:
        print_json({"keys": found})
        return
    table = Table("key", "name", "scopes", "created", "expires", "revoked", "last used", "replaced by", box=None)
    for key in found:
        stamps = (key[n] for n in ("created_at", "expires_at", "revoked_at", "last_used_at"))
        shown = (stamp.strftime("%Y-%m-%d %H:%M") if stamp else "-" for stamp in stamps)
        table.add_row(key["key_id"], key["name"], " ".join(key["scopes"]), *shown, key["replaced_by"] or "-")
    Console().print(table)


@keys.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old key stays good, such as 30m, 1h, 7d or 0.")] = "1h",
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Of the new key; as long as the old one's unless given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key that takes another's place, with its name and scopes. It is shown once."""
    expires_in = timedelta(days=expires_in_days) if expires_in_days else None
    with opened(load_settings()) as database:
        access = AccessService(database, utc_now)
        created = access.rotate(key_id, actor="cli", grace=parse_duration(grace), expires_in=expires_in)
        old = access.find(key_id)
    if as_json:
        print_json(_key(created.key) | {"token": created.token, "replaces": _key(old)})
    else:
        typer.echo(created.token)
        typer.echo("Keep it: it cannot be shown again.", err=True)
        typer.echo(f"{key_id} is refused from {old.expires_at:%Y-%m-%d %H:%M:%S} UTC on.", err=True)


@keys.command()
def revoke(
    key_id: KeyId,
    as_json: Json = False,
) -> None:
    """Refuse a key from now on (within 5 seconds everywhere)."""
    with opened(load_settings()) as database:
        key = AccessService(database, utc_now).revoke(key_id, actor="cli")
    if as_json:
        print_json(_key(key))
    else:
        typer.echo(f"revoked {key.key_id} ({key.name})")


def parse_scopes(given: list[str]) -> frozenset[Scope]:
    """Scopes from repeated options and comma lists. Raises InvalidRequest for an unknown one."""
    names = [part.strip().lower() for value in given for part in value.split(",") if part.strip()]
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError as error:
        raise InvalidRequest(f"{error}; the scopes are {', '.join(Scope)}") from error


def parse_duration(given: str) -> timedelta:
    """`90s`, `30m`, `1h`, `7d` or `0`. Raises InvalidRequest for anything else."""
    found = re.fullmatch(r"(\d{1,7})([smhd])|0", given.strip().lower())
    if found is None:
        raise InvalidRequest(f"{given!r} is no duration; write a number and s, m, h or d, such as 1h")
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    return timedelta(**{units[found[2]]: int(found[1])}) if found[2] else timedelta(0)


def _key(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "replaced_by": key.replaced_by,
    }


if __name__ == "__main__":
    run(app)

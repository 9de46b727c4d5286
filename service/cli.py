"""The commands of the online half: serve, db, keys. `app` is mounted by trainer.cli; `run` ends either of them."""

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
# The computing thread takes the interpreter's lock at every operation; by default it may wait 5 ms for it each time.
SWITCH_S = 0.0005


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
    from service.http.server import DrainingServer

    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level)
    with opened(settings):
        pass  # a wrong schema is said in one line here; the application checks again when it starts
    app = create_app(settings)  # before the port: a wrong setting is said in one line, too
    listener = bind(settings.host, settings.port)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", server_header=False)
    server = DrainingServer(config, app.state.services.readiness.drain, settings.drain)
    sys.setswitchinterval(SWITCH_S)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    typer.echo(f"Adaptide listens on http://{shown}:{listener.getsockname()[1]} (API documentation: /docs)")
    # uvicorn stops gracefully and then raises the signal again, which would end the process with its status.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    server.run(sockets=[listener])
    if not server.started:
        raise ConfigurationError("the service could not start; the log above says why")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigurationError when the address is in use or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"{host} is no address that can be bound: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
    table = Table("key", "name", "scopes", "created", "expires", "revoked", "last used", box=None)
    for key in found:
        stamps = (key[n] for n in ("created_at", "expires_at", "revoked_at", "last_used_at"))
        shown = (stamp.strftime("%Y-%m-%d %H:%M") if stamp else "-" for stamp in stamps)
        table.add_row(key["key_id"], key["name"], " ".join(key["scopes"]), *shown)
    Console().print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The part of the key between the underscores.")], as_json: Json = False
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


def _key(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


if __name__ == "__main__":
    run(app)

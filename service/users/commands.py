"""`adaptide users export, erase`: the same service functions as the API, as actor cli."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from service.cli import Json, opened, print_json
from service.errors import InvalidRequest
from service.kit.clock import utc_now
from service.kit.fields import Identifier
from service.kit.files import new_file, unwritten
from service.settings import load_settings
from service.shared import told_of_erasures
from service.telemetry import configure_logging
from service.users import export as exports
from service.users import service

ACTOR = "cli"

app = typer.Typer(no_args_is_help=True, help="What is held on a user: export it, erase it (docs/privacy.md).")

UserId = Annotated[str, typer.Argument(metavar="USER_ID", help="As events name the user.")]


@app.command()
def export(
    user_id: UserId,
    out: Annotated[Path | None, typer.Option(help="A new file, readable by you alone; none: standard output.")] = None,
) -> None:
    """Write everything that is held on a user, one JSON object a line; the last is of kind `end`.

    A file is there whole or not at all; of standard output only what ends so is whole.
    """
    user_id = _checked(user_id)
    settings = load_settings()
    configure_logging("WARNING")
    with opened(settings) as database:
        lines = exports.export_user(database, settings, user_id, clock=utc_now, actor=ACTOR)
        if out is None:
            for line in lines:
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            return
        try:
            with new_file(out) as part, part.open("wb") as file:
                file.writelines(lines)
        except OSError as error:
            raise InvalidRequest(unwritten(out, error)) from error
    typer.echo(f"written to {out}", err=True)


@app.command()
def erase(
    user_id: UserId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a user's events, history and recommendations. Cannot be undone.

    Events that occurred until now are refused from now on. Adapters and bases that have learnt from the user are left
    as they are: docs/privacy.md says what to do about them.
    """
    user_id = _checked(user_id)
    settings = load_settings()
    configure_logging("WARNING")
    if not yes:
        typer.confirm(f"Erase all that is held on user {user_id!r}?", abort=True, err=True)
    with told_of_erasures(settings) as tell, opened(settings) as database:
        erased = service.erase_user(database, user_id, clock=utc_now, actor=ACTOR, on_erased=tell)
    if as_json:
        print_json(erased.model_dump())
    else:
        typer.echo(f"erased {erased.events:,} events and {erased.recommendations:,} recommendations")


def _checked(user_id: str) -> str:
    try:
        return TypeAdapter(Identifier).validate_python(user_id)
    except ValidationError as error:
        raise InvalidRequest("a user id has 1 to 128 characters, none of them a control character") from error

"""Dataclasses to JSON values and back, by their types."""

import dataclasses
import types
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from service.client.errors import UnexpectedReply

T = TypeVar("T")


def encode(value: Any) -> Any:
    """JSON of a dataclass, list, mapping or plain value; a field that has its default is left out of a dataclass.

    The server knows its own defaults then, and an older one is not sent what it does not know. Raises ValueError for a
    time without a zone.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(inner)
            for field in dataclasses.fields(value)
            if (inner := getattr(value, field.name)) != field.default
            and (field.default_factory is dataclasses.MISSING or inner != field.default_factory())
        }
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; make it one with tzinfo, such as datetime.now(UTC)")
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [encode(inner) for inner in value]
    return value


def decode(kind: type[T], value: Any) -> T:
    """A reply's JSON as `kind`; fields that are not known are left out, so that a newer server can be talked to.

    Raises UnexpectedReply when a field is missing.
    """
    try:
        found: T = _decoder(cast(Any, kind))(value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnexpectedReply(f"the reply is no {kind.__name__}: {error}") from error
    return found


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = _decoder(next(argument for argument in arguments if argument is not types.NoneType))
        return lambda value: None if value is None else inner(value)
    if origin is list:
        inner = _decoder(arguments[0])
        return lambda value: [inner(each) for each in value]
    if origin is dict:
        inner = _decoder(arguments[1])
        return lambda value: {name: inner(each) for name, each in value.items()}
    if kind is datetime:
        return datetime.fromisoformat
    if kind is float:
        return float
    if dataclasses.is_dataclass(kind):
        return _object_decoder(kind)
    return lambda value: value


def _object_decoder(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]

    def make(value: Any) -> Any:
        # Looked up here: a type may hold another of its own kind.
        return kind(**{name: _decoder(hints[name])(value[name]) for name in names if name in value})

    return make

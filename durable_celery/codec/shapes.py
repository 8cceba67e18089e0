"""Shapes: the type that a payload must have. The sender holds a value against it, the receiver builds one again.

A shape is made of what the codec can carry: JSON types, datetime, date, time, Decimal, UUID and bytes, dataclasses and
pydantic models; of ``list``, ``dict`` and ``tuple`` of these, of unions and of ``Literal``. What comes from elsewhere
as JSON (the command line, a web hook) has instants, numbers and ids as texts, and those are read.

Invariant: a value that was accepted builds an equal one at the receiver, for the sender has tried it. Nothing is
imported for pydantic: a model is known by its looks.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from enum import Enum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from durable_celery.codec.values import Codec
from durable_celery.errors import InvalidRequestError, PayloadError

__all__ = ["Shape"]

#: Types that a JSON text stands for where there is nothing better, and how it is read.
_TEXTS: dict[type, Callable[[str], Any]] = {
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    time: time.fromisoformat,
    Decimal: Decimal,
    UUID: UUID,
}
_PLAIN = (bool, int, float, str, bytes, list, dict, tuple)
_JSON = Codec()


class Shape:
    """A type that payloads are held against."""

    def __init__(self, kind: Any) -> None:
        """Take a type; None is that of no value, ``Any`` and ``object`` let everything pass.

        Raises:
            InvalidRequestError: values of this type, or of a part of it, cannot be carried.
        """
        self.kind = NoneType if kind is None else kind
        if (odd := next(_odd_parts(self.kind, ()), None)) is not None:
            raise InvalidRequestError(
                f"{_name(odd)} cannot be the type of a signal: it takes JSON types, datetime, date, time, Decimal, "
                "UUID, bytes, dataclasses and pydantic models, and list, dict[str, ...], tuple, unions and Literal"
            )

    def __str__(self) -> str:
        return _name(self.kind)

    def dumps(self, value: object, codec: Codec, what: str) -> str:
        """Return the JSON text of a value, or of what it builds; ``what`` names it in errors.

        Raises:
            PayloadError: it builds none of this type, or cannot be recorded; the message says where and why.
        """
        if self.kind is Any:
            return codec.dumps(value, what)
        try:
            built = _build(self.kind, value, "")
            text = codec.dumps(_plain(built), what)
            back = _build(self.kind, _JSON.decode(text), "")
        except PayloadError:
            raise
        except (TypeError, ValueError) as error:
            raise PayloadError(f"{what} is to be of type {self}: {error}") from error
        if not _is_same(built, back):
            raise PayloadError(
                f"{what}, of type {self}, would be another value at the receiver: it has parts that JSON leaves out "
                "(such as a SecretStr), or could be of several types of a union"
            )
        return text

    def received(self, form: object) -> Any:
        """Build the value of a plain form.

        Raises:
            TypeError, ValueError: it builds none; and whatever a user's own class raises.
        """
        return _build(self.kind, form, "")


def _build(kind: Any, value: Any, where: str) -> Any:
    """Return the value of this type that ``value`` is, or stands for; ``where`` is its place in the whole."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return _build_union(args, value, where)
    if origin is Literal:
        return _checked(any(value == one and type(value) is type(one) for one in args), kind, value, where)
    if origin is not None:
        return _build_container(origin, args, value, where)
    return value if kind in {Any, object} else _build_class(kind, value, where)


def _build_class(kind: type, value: Any, where: str) -> Any:
    if _is_model(kind):
        return _build_model(kind, value)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if issubclass(kind, Enum):
        return kind(value)
    return _build_plain(kind, value, where)


def _build_plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind in _TEXTS and isinstance(value, str):
        try:
            return _TEXTS[kind](value)
        except (ValueError, InvalidOperation):
            _checked(False, kind, value, where)
    # True is an int to Python, and a datetime a date; here they are not.
    is_one = type(value) is kind if kind in {int, date} else isinstance(value, kind)
    return _checked(is_one, kind, value, where)


def _build_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _build(kind, value, where)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    raise TypeError(" and ".join(problems))


def _build_container(origin: type, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin is dict:
        _checked(isinstance(value, Mapping), origin, value, where)
        return {_build(args[0], key, where): _build(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    _checked(isinstance(value, list | tuple), origin, value, where)
    if origin is tuple and args[1:] != (Ellipsis,):
        if len(value) != len(args):
            raise ValueError(f"{where or 'it'} has {len(value)} items in place of {len(args)}")
        kinds = args
    else:
        kinds = args[:1] * len(value)
    return origin(_build(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
    _checked(isinstance(value, Mapping), kind, value, where)
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(map(str, value.keys() - fields.keys())):
        raise ValueError(f"{where or _name(kind)} has no field {', '.join(unknown)}; it has {', '.join(fields)}")
    given = {
        name: _build(hints[name], item, f"{where}.{name}".lstrip("."))
        for name, item in value.items()
        if fields[name].init
    }
    if missing := [name for name, f in fields.items() if f.init and name not in given and _is_required(f)]:
        raise ValueError(f"{where or _name(kind)} lacks {', '.join(missing)}")
    return kind(**given)


def _build_model(kind: Any, value: Any) -> Any:
    if isinstance(value, kind):
        # What was changed since it was validated is noticed when it is built again.
        return value
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return kind.model_validate(value)
    # As JSON, in which a strict model too takes a text for a datetime.
    return kind.model_validate_json(text)


def _plain(value: Any) -> Any:
    """Return the form in which a built value is written."""
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _is_same(built: Any, back: Any) -> bool:
    """Whether the models and dataclasses of a value have come back as they were."""
    if _is_model(type(back)):
        return bool(built == back)
    if dataclasses.is_dataclass(back):
        pairs = [(getattr(built, f.name, None), getattr(back, f.name)) for f in dataclasses.fields(back)]
        return type(built) is type(back) and all(_is_same(*pair) for pair in pairs)
    if isinstance(back, list | tuple):
        return all(map(_is_same, built, back))
    return not isinstance(back, Mapping) or all(map(_is_same, built.values(), back.values()))


def _odd_parts(kind: Any, seen: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the parts of a type that no payload can have."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in {Any, object} or kind in seen or origin is Literal or _is_model(kind):
        return
    if origin in {Union, UnionType, list, tuple} or (origin is dict and args[0] is str):
        for part in args:
            yield from () if part is Ellipsis else _odd_parts(part, seen)
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        for f in dataclasses.fields(kind):
            yield from _odd_parts(_hints(kind)[f.name], (*seen, kind))
    elif kind not in {*_PLAIN, *_TEXTS, NoneType} and not _is_plain_enum(kind):
        yield kind


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    return get_type_hints(kind)


def _is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


def _is_plain_enum(kind: Any) -> bool:
    """Whether it is an enum whose members are texts or numbers, as JSON has them."""
    return inspect.isclass(kind) and issubclass(kind, Enum) and issubclass(kind, str | int)


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _checked(is_right: bool, kind: Any, value: Any, where: str) -> Any:  # noqa: FBT001 - reads as the claim that it is
    if not is_right:
        raise TypeError(f"{where or 'it'} is of type {type(value).__name__} in place of {_name(kind)}")
    return value


def _name(kind: Any) -> str:
    if kind is NoneType:
        return "None"
    return kind.__qualname__ if get_origin(kind) is None and isinstance(kind, type) else str(kind)

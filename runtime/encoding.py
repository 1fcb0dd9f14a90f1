"""Frozen values to JSON and back, refusing what either side cannot say."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from .errors import BundleError

Value = TypeVar("Value", bound=Struct)
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]


def encode(value: Struct) -> bytes:
    """A value as indented JSON that ends with a newline.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON cannot say.
    """
    builtins = msgspec.to_builtins(value)
    _refuse_not_finite(builtins, "$")
    return msgspec.json.format(msgspec.json.encode(builtins), indent=2) + b"\n"


def decode(data: bytes, kind: type[Value], *, where: str) -> Value:
    """Reads a value from JSON, refusing what its type does not allow.

    Args:
        data: UTF-8 JSON.
        kind: the Struct to read; unknown and missing fields are refused by name.
        where: the file's name, for messages.

    Raises:
        BundleError: not JSON, a key twice, a field unknown, missing or of another type.
    """
    try:
        plain = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        return msgspec.convert(plain, kind)
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        raise BundleError(f"{where}: {error}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return unique


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _refuse_not_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot say")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_not_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_not_finite(item, f"{where}[{index}]")

"""A task's parameters: which calls fit them, and how arguments that come as bytes become what the annotations say.

Types are read from the annotations when they are first needed, so that an annotation may name what is defined later.
The quick way reads all positional arguments with one decoder, chosen by their number, and all others with another.
A task with `*args` or `**kwargs`, and every call that fails, takes the slow way, argument by argument: it can tell
which one is wrong.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypedDict, get_type_hints

import msgspec
from msgspec import Raw, Struct

from taskq.config import did_you_mean
from taskq.errors import ArgumentsError, ConfigError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Decode = Callable[[bytes | Raw], Any]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_WAY_OUT = 'annotate what msgspec can convert, or use @task(serializer="cloudpickle")'

UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What msgspec raises for a value that it can't encode."""
UNDECODABLE = (msgspec.DecodeError, RecursionError)
"""What msgspec raises for bytes that are malformed, or not of the type asked for."""


class Format(Struct, frozen=True):
    """MessagePack or JSON."""

    name: str
    encode: Callable[[Any], bytes]
    decoder: Callable[[Any], Any]
    """Makes a decoder of a type."""
    array: Decode
    """Reads an array, leaving its elements encoded."""
    map: Decode
    """Reads a map with string keys, leaving its values encoded."""


def _plain(value: Any) -> Any:
    """Subclasses of the basic types (markup strings, NumPy's float64) travel as what they are."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"a {type(value).__name__} can't be encoded; {_WAY_OUT}")


MSGPACK = Format(
    "MessagePack",
    msgspec.msgpack.Encoder(enc_hook=_plain).encode,
    msgspec.msgpack.Decoder,
    msgspec.msgpack.Decoder(list[Raw]).decode,
    msgspec.msgpack.Decoder(dict[str, Raw]).decode,
)
JSON = Format(
    "JSON",
    msgspec.json.Encoder(enc_hook=_plain).encode,
    msgspec.json.Decoder,
    msgspec.json.Decoder(list[Raw]).decode,
    msgspec.json.Decoder(dict[str, Raw]).decode,
)


class Parameters:
    """The parameters of the function behind the task `task_name`."""

    # All constant once set; `_types` is set when first asked for. Two threads that do so at once find the same.

    def __init__(self, task_name: str, fn: Callable[..., Any]) -> None:
        self.task_name = task_name
        self.signature = _signature(fn)
        self._fn = fn
        self._types: dict[str, Any] | None = None
        parameters = self.signature.parameters.values()
        self.positional = tuple(p.name for p in parameters if p.kind in _POSITIONAL)
        self.var_positional = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self.var_keyword = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self.keyword = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        required = {
            p.name for p in parameters if p.default is p.empty and p.name not in (self.var_positional, self.var_keyword)
        }
        counts = range(len(self.positional) + 1)
        self.must = [frozenset(required.difference(self.positional[:n])) for n in counts]
        """By number of positional arguments: the names that there must be besides."""
        self.may = [self.keyword.difference(self.positional[:n]) for n in counts]
        """The same: the names that there may be besides, but for those that `**kwargs` takes."""
        self.plain = self.var_positional is None and self.var_keyword is None
        """Has neither `*args` nor `**kwargs`."""

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentsError unless a call with these fits, in number and names."""
        if self.plain and len(args) <= len(self.positional):
            names = kwargs.keys()
            if self.must[len(args)] <= names <= self.may[len(args)]:
                return
        for name in kwargs:
            if self.keyword_name(name) is None:
                raise ArgumentsError(f"{self.task_name}: no parameter {name!r}{did_you_mean(name, self.keyword)}")
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentsError(f"{self.task_name}: {error}") from None

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments by parameter, defaults included. Raises ArgumentsError."""
        self.check(args, kwargs)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def type_of(self, name: str) -> Any:
        """Return the type of a parameter; of `*args` and `**kwargs`, that of each. Raises ConfigError."""
        if self._types is None:
            self._types = _resolve(self.task_name, self._fn, self.signature)
        return self._types[name]

    def positional_name(self, index: int) -> str:
        """Return the parameter that takes the positional argument with this index. Raises ArgumentsError."""
        if index < len(self.positional):
            return self.positional[index]
        if self.var_positional is None:
            raise ArgumentsError(f"{self.task_name}: too many positional arguments")
        return self.var_positional

    def keyword_name(self, name: str) -> str | None:
        """Return the parameter that takes the keyword argument of this name, if there is one."""
        return name if name in self.keyword else self.var_keyword


class Codec:
    """Encodes and decodes the arguments of one task in one format."""

    def __init__(self, parameters: Parameters, form: Format) -> None:
        self._parameters = parameters
        self._form = form
        self._decoders: dict[str, Decode] = {
            name: form.decoder(parameters.type_of(name)).decode for name in parameters.signature.parameters
        }
        types = [parameters.type_of(name) for name in parameters.positional]
        self.positional: list[Decode] = [form.decoder(_tuple_of(types[:n])).decode for n in range(len(types) + 1)]
        """The quick way: number of positional arguments -> what reads an array of them."""
        keyword_types = {name: parameters.type_of(name) for name in parameters.keyword}
        self.keyword: Decode = form.decoder(TypedDict("Keyword", keyword_types, total=False)).decode  # type: ignore[operator]
        """The quick way for keyword arguments: reads a map of them, leaving out those of other names."""
        self.typed = any(parameters.type_of(name) is not Any for name in parameters.signature.parameters)
        """Whether there is more to check than number and names."""

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Raw, Raw]:
        """Encode a call's arguments. Raises ArgumentsError, naming the parameter, unless `decode` will take them."""
        parameters = self._parameters
        parameters.check(args, kwargs)
        values = [
            encode_one(self._form, parameters.task_name, parameters.positional_name(index), value)
            for index, value in enumerate(args)
        ]
        named = {name: encode_one(self._form, parameters.task_name, name, value) for name, value in kwargs.items()}
        encoded_args, encoded_kwargs = Raw(self._form.encode(values)), Raw(self._form.encode(named))
        self.decode(encoded_args, encoded_kwargs)
        return encoded_args, encoded_kwargs

    def decode(self, args: Raw, kwargs: Raw, *, lenient: bool = False) -> Arguments:
        """Decode a call's arguments one by one. `lenient` leaves out those by names that the task does not have.

        Raises ArgumentsError for what does not fit, naming the parameter.
        """
        parameters = self._parameters
        values = [
            self._value(parameters.positional_name(index), raw)
            for index, raw in enumerate(self._read(self._form.array, args, "args"))
        ]
        named: dict[str, Any] = {}
        for name, raw in self._read(self._form.map, kwargs, "kwargs").items():
            taker = parameters.keyword_name(name)
            if taker is not None:
                named[name] = self._value(taker, raw)
            elif not lenient:
                named[name] = None  # for check() to complain of
        parameters.check(values, named)
        return tuple(values), named

    def _value(self, name: str, raw: Raw) -> Any:
        try:
            return self._decoders[name](raw)
        except UNDECODABLE as error:
            raise ArgumentsError(f"{self._parameters.task_name}: parameter {name!r}: {error}") from error

    def _read(self, decode: Decode, raw: Raw, what: str) -> Any:
        try:
            return decode(raw)
        except UNDECODABLE as error:
            raise ArgumentsError(f"{self._parameters.task_name}: {what}: {error}") from error


def encode_one(form: Format, owner: str, name: str, value: Any) -> Raw:
    """Encode one value. Raises ArgumentsError that says whose it is."""
    try:
        return Raw(form.encode(value))
    except UNENCODABLE as error:
        raise ArgumentsError(f"{owner}: parameter {name!r}: {error}") from error


def _tuple_of(types: Sequence[Any]) -> Any:
    return tuple[tuple(types)] if types else tuple[()]  # type: ignore[misc]


# --- reading a function


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        from annotationlib import Format as AnnotationFormat

        return inspect.signature(fn, annotation_format=AnnotationFormat.FORWARDREF)
    return inspect.signature(fn)


def _resolve(task_name: str, fn: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    # Parameters only: what a task returns may be annotated with a name that exists for type checkers alone.
    said = {p.name: p.annotation for p in _signature(fn).parameters.values() if p.annotation is not p.empty}
    module = getattr(inspect.unwrap(fn), "__globals__", {})
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__=said), globalns=module, include_extras=True)
    except Exception as error:
        raise ConfigError(
            f"{task_name}: an annotation can't be resolved: {error}; does the module define it?"
        ) from error
    types = {name: hints.get(name, Any) for name in signature.parameters}
    for name, kind in types.items():
        if kind is object:
            types[name] = Any
        custom = _custom_class(task_name, name, kind)
        if custom is not None:
            raise ConfigError(
                f"{task_name}: parameter {name!r}: a {custom.__qualname__} can't be made from a message; {_WAY_OUT}"
            )
    return types


def _custom_class(task_name: str, name: str, kind: Any) -> type | None:
    """Return the first class within the type that msgspec knows no conversion for, if any."""
    from msgspec.inspect import CustomType, type_info

    try:
        found: list[Any] = [type_info(kind)]
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(f"{task_name}: parameter {name!r}: {error}; {_WAY_OUT}") from error
    seen: set[int] = set()
    while found:
        info = found.pop()
        if isinstance(info, CustomType):
            if info.cls is not object:
                return info.cls
        elif isinstance(info, tuple | list):
            found.extend(info)
        elif isinstance(info, Struct) and id(info) not in seen:
            seen.add(id(info))
            found.extend(getattr(info, attribute) for attribute in info.__struct_fields__)
    return None

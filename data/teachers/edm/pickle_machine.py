"""Reads a pickle as data: a stack machine that builds containers and calls nothing.

A pickle is a program. This machine runs the instructions that protocols 2 to 5 need for plain
objects. Where a pickle names, calls or fills something, a `Dialect` decides which inert value
takes its place; names that the dialect does not list are refused. pickle_reader.py has one such
dialect, data/torch_file.py another.
"""

import io
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pickletools import genops
from typing import Any

from torch import Tensor

MAX_BITS = 128  # of an integer; torch's magic number, the longest in use, has 80
MAX_DIMENSIONS = 8  # of a tensor


class Refused(Exception):
    """Why a pickle is not read, and what to do; callers put the start of the sentence before it."""


@dataclass(frozen=True)
class Symbol:
    """The name of a global in the pickle; the global itself is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return the dotted name, cut to what fits into a message."""
        return f"{self.module}.{self.name}"[:200]


@dataclass(frozen=True, eq=False)
class Persistent:
    """The pickle's description of an object that is stored elsewhere."""

    description: Any


@dataclass(frozen=True)
class Dialect:
    """What a kind of pickle may ask for.

    Attributes:
        names: The globals it may name.
        call: (symbol, arguments) -> the value of that call; raises Refused for unknown calls.
        fill: (object, state) sets an object's state; raises Refused if it has none to set.
    """

    names: frozenset[Symbol]
    call: Callable[[Symbol, object], Any]
    fill: Callable[[object, object], None]


_NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINSTRING", "SHORT_BINSTRING"),  # of Python 2
}


def load(data: mmap.mmap | io.BytesIO, size: int, dialect: Dialect) -> Any:
    """Return the value of the pickle at the position of `data`, and move behind the pickle.

    Raises:
        Refused: If the dialect does not cover it, or if it is longer than the `size` bytes.
    """
    machine = _Machine(dialect)
    try:
        for opcode, argument, position in genops(data):  # pyrefly: ignore[bad-argument-type]  it only reads
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument, position)
    except ValueError as error:  # of genops; what the machine refuses is no ValueError
        if data.tell() < size:
            raise Refused(f"no pickle ({str(error)[:100]}); choose another file") from error
    raise Refused(f"one cut short after {size} bytes; copy or download it again")


def tensor_in(data: Tensor, offset: int, size: tuple, stride: tuple) -> Tensor:
    """Return a view into a storage; refuse one that would leave the storage or be larger."""
    count = len(data)
    if len(size) == len(stride) <= MAX_DIMENSIONS and all(
        isinstance(n, int) and isinstance(step, int) and n >= 1 and 0 <= step <= count
        for n, step in zip(size, stride, strict=True)
    ):
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 <= offset <= last < count and math.prod(size) <= count:
            return data.as_strided(size, stride, offset)
    raise Refused(f"a tensor that does not fit its storage of {count} numbers; it is damaged")


class _Machine:
    """A pickle's stack, marks and memo; it builds containers, the dialect provides the rest."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below the marks, outermost first
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int | None) -> None:
        """Carry out one instruction."""
        match name:
            case "PROTO" | "FRAME":
                pass
            # values and containers
            case _ if name in _LITERALS:
                self.stack.append(_LITERALS[name])
            case _ if name in _NEW:
                self.stack.append(_NEW[name]())
            case _ if name in _VALUES:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    raise Refused(f"an integer of {argument.bit_length()} bits; it is damaged")
                self.stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(name[-1]))]
                self.stack.append(tuple(reversed(items)))
            case "TUPLE":
                items = self._since_mark()
                self.stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = [self.pop()] if name == "APPEND" else self._since_mark()
                self._top(list).extend(items)
            case "ADDITEMS":
                items = self._since_mark()
                self._top(set).update(keys(items))
            case "SETITEM" | "SETITEMS":
                items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self._since_mark()
                if len(items) % 2:
                    raise Refused("a dictionary with a key that lacks its value; it is damaged")
                self._top(dict).update(zip(keys(items[::2]), items[1::2], strict=True))
            # marks and the memo
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top(object)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top(object)
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise Refused("a pickle that recalls what it never said; it is damaged")
                self.stack.append(self.memo[argument])
            # names, calls, states
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                self._name(module, attribute)
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self._name(module, attribute)
            case "REDUCE" | "NEWOBJ":
                arguments, symbol = self.pop(), self.pop()
                if not isinstance(symbol, Symbol):
                    raise Refused("a call of something that is no name; it is made to harm")
                self.stack.append(self.dialect.call(symbol, arguments))
            case "BUILD":
                state = self.pop()
                self.dialect.fill(self._top(object), state)
            case "BINPERSID":
                self.stack.append(Persistent(self.pop()))
            case _:
                raise Refused(
                    f"the pickle instruction {name} at byte {position}, which such a checkpoint "
                    "has no need of; choose another file"
                )

    def pop(self) -> Any:
        """Take the topmost value."""
        if not self.stack:
            raise Refused("a pickle that takes more than it holds; it is damaged")
        return self.stack.pop()

    def _top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Refused(f"a pickle that lacks a {kind.__name__} to fill; it is damaged")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self.below:
            raise Refused("a pickle that lacks a mark; it is damaged")
        items, self.stack = self.stack, self.below.pop()
        return items

    def _name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("a name that is no text; it is made to harm")
        symbol = Symbol(module, name)
        if symbol not in self.dialect.names:
            raise Refused(
                f"one that asks for {symbol}, which such a checkpoint has no need of and which "
                "was not run; do not load it with other tools either"
            )
        self.stack.append(symbol)


def keys(values: list[Any]) -> list[Any]:
    """Return values that may be keys of a dictionary or elements of a set; refuse others."""
    if not all(isinstance(value, str | int) for value in values):
        raise Refused("a key that is neither text nor a whole number; it is damaged")
    return values

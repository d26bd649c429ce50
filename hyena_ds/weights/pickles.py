"""Reads a pickle without running it: what it would build is looked at, nothing that it names is imported or called.

    bytes --pickletools: one opcode after another--> a stack of plain values --> dicts, lists, texts, StoredTensors

Python's own unpickler calls whatever a pickle names. Here a name is a word, which has to be in a table; what it would have
built is one of ours: a dict, a tensor's place within the archive, or an `Inert`, which holds nothing. Opcodes, items, memo,
depth and numbers are bounded, so that no pickle takes more than some hundred MiB or some seconds.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable
from typing import Any

from hyena_ds.errors import MOST_QUOTED, in_one_line
from hyena_ds.weights.pickle_values import (
    DICTS,
    KNOWN,
    PARAMETER,
    TENSOR,
    Inert,
    Name,
    Refused,
    Storage,
    StoredTensor,
    is_size,
    stored_tensor,
)

MOST_STEPS = 1_000_000
"""Opcodes, and items that they move; a published checkpoint with its optimizer takes some ten thousand."""
MOST_MEMO = 500_000
MOST_WAITING = 20_000
"""Values on the stack, and marks."""
MOST_DEPTH = 100


class _List(list[Any]):
    __slots__ = ("depth",)


class _Dict(dict[Any, Any]):
    __slots__ = ("depth",)


class _Tuple(tuple[Any, ...]):
    depth: int


_KEYS = (str, int, float, bool, Name, type(None))
"""Kinds of keys: none takes long to hash. A `Name` stands for a class, by which Lightning knew its callbacks."""


def read_pickle(data: bytes) -> Any:
    """What a pickle builds, of dicts, lists, tuples, texts, numbers, StoredTensors, and Inerts for all else.

    Raises Refused where it names what is not in the table, goes beyond a bound, or is no pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        return machine.result()
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, struct.error, EOFError) as error:
        raise Refused(f"is no whole pickle ({in_one_line(str(error), MOST_QUOTED)})") from None


class _Machine:
    """Python's pickle machine, on values that can do nothing."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one opcode."""
        self._spend(1)
        if opcode in _VALUES:
            self._push(self._plain(argument))
        elif opcode in _CONSTANTS:
            self._push(_CONSTANTS[opcode])
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        else:
            raise Refused(f"holds the opcode {opcode}, which no file of weights needs")

    def result(self) -> Any:
        """What is left at the end."""
        if len(self._stack) != 1 or self._marks:
            raise Refused("is no whole pickle (values are left over at its end)")
        return self._stack[0]

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise Refused(f"takes more than {MOST_STEPS:,} steps")

    def _push(self, value: Any) -> None:
        if len(self._stack) >= MOST_WAITING:
            raise Refused(f"puts more than {MOST_WAITING:,} values on its stack")
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise Refused("is no whole pickle (it takes more than it has put down)")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise Refused("is no whole pickle (it looks at a value that is not there)")
        return self._stack[-1]

    def _mark(self) -> None:
        if len(self._marks) >= MOST_DEPTH:
            raise Refused(f"nests deeper than {MOST_DEPTH}")
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise Refused("is no whole pickle (it closes what was not opened)")
        items, self._stack = self._stack, self._marks.pop()
        self._spend(len(items))
        return items

    def _drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _drop_to_mark(self) -> None:
        self._since_mark()

    @staticmethod
    def _plain(value: Any) -> Any:
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise Refused("holds a number of more than 64 bits")
        return value

    def _remember(self, index: int) -> None:
        if len(self._memo) >= MOST_MEMO:
            raise Refused(f"remembers more than {MOST_MEMO:,} values")
        self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise Refused(f"is no whole pickle (it recalls value {index}, which it has not remembered)")
        self._push(self._memo[index])

    def _name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)) or Name(module, name) not in KNOWN:
            shown = in_one_line(f"{module}.{name}", MOST_QUOTED)
            raise Refused(f"names '{shown}', which no weights need: it would run when it is opened by other programs")
        self._push(Name(module, name))

    def _build(self, named: Any, arguments: Any) -> None:
        """Push what calling a name would give: REDUCE, NEWOBJ, OBJ and INST."""
        if not isinstance(named, Name) or not isinstance(arguments, tuple | list):
            raise Refused("calls what is no name")
        if named in DICTS:
            made = _Dict()
            pairs = arguments[-1] if arguments and isinstance(arguments[-1], list) else ()
            self._spend(len(pairs))
            self._fill(made, [item for key, value in pairs for item in (key, value)])
            self._push(made)
        elif named == TENSOR:
            self._push(stored_tensor(*arguments[:4]))
        elif named == PARAMETER:
            if not (arguments and isinstance(arguments[0], StoredTensor)):
                raise Refused("makes a parameter of what is no tensor")
            self._push(arguments[0])
        else:
            self._push(Inert())

    def _storage(self) -> None:
        """Push the storage that a persistent id names."""
        what = self._pop()
        if not (isinstance(what, tuple) and len(what) == 5 and what[0] == "storage" and isinstance(what[1], Name)):
            raise Refused("refers to what is no storage")
        _, (module, name), key, _, count = what
        if module != "torch" or not name.endswith("Storage") or not isinstance(key, str) or not is_size(count):
            raise Refused("refers to a storage of an unknown kind")
        self._push(Storage(name, key, count))

    def _extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, _List):
            for item in items:
                _deepen(target, (item,))
                target.append(item)
        elif not isinstance(target, Inert):
            raise Refused("appends to what is no list")

    def _fill(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, _Dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if not isinstance(key, _KEYS):
                    raise Refused("has a key that is no text, number or name")
                _deepen(target, (value,))
                target[key] = value
        elif not isinstance(target, Inert):
            raise Refused("sets items of what is no dict")

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)][::-1]
        self._push(_deepen(_Tuple(items), items))

    def _list(self, items: list[Any]) -> None:
        made = _List()
        self._extend(made, items)
        self._push(made)

    def _dict(self, items: list[Any]) -> None:
        made = _Dict()
        self._fill(made, items)
        self._push(made)

    def _marked_tuple(self) -> None:
        items = self._since_mark()
        self._push(_deepen(_Tuple(items), items))

    def _reduce(self) -> None:
        arguments, named = self._pop(), self._pop()
        self._build(named, arguments)

    def _new_with_names(self) -> None:
        self._pop()
        self._reduce()

    def _object(self) -> None:
        named, *arguments = self._since_mark()
        self._build(named, arguments)

    def _instance(self, words: str) -> None:
        module, _, name = words.partition(" ")
        arguments = self._since_mark()
        self._name(module, name)
        self._build(self._pop(), arguments)

    def _global(self, words: str) -> None:
        module, _, name = words.partition(" ")
        self._name(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _one_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._fill(self._top(), [key, value])

    def _items(self) -> None:
        items = self._since_mark()
        self._fill(self._top(), items)

    def _one_more(self) -> None:
        value = self._pop()
        self._extend(self._top(), [value])

    def _more(self) -> None:
        items = self._since_mark()
        self._extend(self._top(), items)

    def _protocol(self, number: int) -> None:
        if number > 5:
            raise Refused(f"is of protocol {number}, wanted at most 5")


def _deepen(container: Any, children: Iterable[Any]) -> Any:
    """`container`, which now holds `children`. Raises Refused where that is too deep."""
    depth = max([getattr(container, "depth", 1), *(1 + getattr(child, "depth", 0) for child in children)])
    if depth > MOST_DEPTH:
        raise Refused(f"nests deeper than {MOST_DEPTH}")
    container.depth = depth
    return container


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    ]
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine._mark(),
    "POP": lambda machine, _: machine._drop(),
    "POP_MARK": lambda machine, _: machine._drop_to_mark(),
    "DUP": lambda machine, _: machine._push(machine._top()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._recall),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._remember),
    "MEMOIZE": lambda machine, _: machine._remember(len(machine._memo)),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": lambda machine, _: machine._stack_global(),
    "REDUCE": lambda machine, _: machine._reduce(),
    "NEWOBJ": lambda machine, _: machine._reduce(),
    "NEWOBJ_EX": lambda machine, _: machine._new_with_names(),
    "OBJ": lambda machine, _: machine._object(),
    "INST": _Machine._instance,
    "BUILD": lambda machine, _: machine._drop(),
    "BINPERSID": lambda machine, _: machine._storage(),
    "EMPTY_LIST": lambda machine, _: machine._push(_List()),
    "EMPTY_DICT": lambda machine, _: machine._push(_Dict()),
    "EMPTY_SET": lambda machine, _: machine._push(_List()),
    "LIST": lambda machine, _: machine._list(machine._since_mark()),
    "FROZENSET": lambda machine, _: machine._list(machine._since_mark()),
    "DICT": lambda machine, _: machine._dict(machine._since_mark()),
    "EMPTY_TUPLE": lambda machine, _: machine._tuple(0),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "TUPLE": lambda machine, _: machine._marked_tuple(),
    "SETITEM": lambda machine, _: machine._one_item(),
    "SETITEMS": lambda machine, _: machine._items(),
    "APPEND": lambda machine, _: machine._one_more(),
    "APPENDS": lambda machine, _: machine._more(),
    "ADDITEMS": lambda machine, _: machine._more(),
}
"""What each opcode does. Those that are not here are refused: extensions, textual ids of objects, buffers out of band."""

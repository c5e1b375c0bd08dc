"""A pickle reader that builds plain containers and nothing else.

It is an interpreter of its own over ``pickletools.genops``: nothing is imported and no method is looked up by name, so
that a hostile pickle has nothing to call. A global is either one of the names the caller admits or a ModelError.

What a pickle can hold here: None, bool, int, float, str, bytes, tuple, list, dict with keys that are text or small
integers, and what the admitted functions give. ``repr``, ``hash`` and ``==`` are never taken of a container, because a
few bytes of pickle can describe nested tuples that take for ever to walk.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from qtool.errors import ModelError

MAX_OPCODES = 5_000_000
"""ResNet-50's state dict takes about 10,000, a large checkpoint with optimizer state some 100,000."""

MAX_INT_KEY = 2**31


@dataclass(frozen=True)
class Admitted:
    """What a pickle may name: ``calls`` to call, ``markers`` to pass on; ``persistent`` resolves storage ids."""

    calls: Mapping[str, Callable[..., Any]]
    markers: Mapping[str, Any]
    persistent: Callable[[Any], Any]


def load(stream: IO[bytes], admitted: Admitted) -> Any:
    """The object of one pickle; the stream stands behind it afterwards.

    ``stream`` must hold its bytes in memory or be mapped (``read(n)`` may not allocate ``n`` bytes up front).
    Raises ModelError for a broken pickle and for a global that is not admitted, naming it.
    """
    machine = _Machine(admitted)
    try:
        with warnings.catch_warnings():
            # `genops` warns of odd escapes in names; such names are not admitted anyway.
            warnings.simplefilter("ignore")
            for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
                if count >= MAX_OPCODES:
                    raise ModelError(f"the pickle has more than {MAX_OPCODES} operations")
                machine.step(opcode.name, arg)
    except (ValueError, OverflowError, MemoryError) as error:
        # `genops` words all that is wrong with the bytes as ValueError.
        raise ModelError(f"the pickle is broken: {str(error)[:200]}") from None
    return machine.result()


class _Machine:
    """The pickle stack. ``marks`` holds the stack as it was at each open mark, innermost last."""

    def __init__(self, admitted: Admitted) -> None:
        self._admitted = admitted
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, arg: Any) -> None:
        if opcode in _PUSHES_ARGUMENT:
            self._stack.append(arg)
        elif opcode in _PUSHES_CONSTANT:
            self._stack.append(_PUSHES_CONSTANT[opcode]())
        elif opcode in _STEPS:
            _STEPS[opcode](self, arg)
        elif opcode not in _IGNORED:
            raise ModelError(f"the pickle uses {opcode}, which is refused: only tensors and plain containers are read")

    def result(self) -> Any:
        if len(self._stack) != 1 or self._marks:
            raise ModelError("the pickle is broken: it does not end with one object")
        return self._stack[0]

    def _pop(self) -> Any:
        if not self._stack:
            raise ModelError("the pickle is broken: its stack is empty")
        return self._stack.pop()

    def _top(self, kind: type[Any]) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ModelError(f"the pickle is broken: a {kind.__name__} was expected on its stack")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise ModelError("the pickle is broken: no mark is open")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop(self, _: Any) -> None:
        self._pop()

    def put(self, index: Any) -> None:
        self._memo[int(index)] = self._top(object)

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top(object)

    def get(self, index: Any) -> None:
        if int(index) not in self._memo:
            raise ModelError("the pickle is broken: it refers to an object that it has not made")
        self._stack.append(self._memo[int(index)])

    def tuple_of_marked(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def tuple_of_top(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def append(self, _: Any) -> None:
        item = self._pop()
        self._top(list).append(item)

    def appends(self, _: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        put_item(self._top(dict), key, value)

    def set_items(self, _: Any) -> None:
        items = self._since_mark()
        if len(items) % 2:
            raise ModelError("the pickle is broken: a dict key has no value")
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            put_item(target, key, value)

    def global_(self, arg: Any) -> None:
        module, _, name = str(arg).partition(" ")
        self._push_global(module, name)

    def stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ModelError("the pickle is broken: a global's name is not text")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full in self._admitted.calls:
            self._stack.append(_Callable(full, self._admitted.calls[full]))
        elif full in self._admitted.markers:
            self._stack.append(self._admitted.markers[full])
        else:
            raise ModelError(
                f"the pickle asks for {full[:200]!r}, which is refused: only tensors and plain containers are read; "
                "save the weights alone with torch.save(model.state_dict(), path)"
            )

    def reduce(self, _: Any) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, _Callable) or not isinstance(args, tuple):
            raise ModelError("the pickle is broken: it calls what is not a function")
        try:
            self._stack.append(function.call(*args))
        except TypeError:
            raise ModelError(f"the pickle is broken: {function.name} is given {len(args)} unfit arguments") from None

    def build(self, _: Any) -> None:
        # The only state torch writes is the `_metadata` attribute of a state dict (module versions): not needed.
        self._pop()
        self._top(dict)

    def persistent_id(self, _: Any) -> None:
        self._stack.append(self._admitted.persistent(self._pop()))


@dataclass(frozen=True)
class _Callable:
    """An admitted function on the stack; a type of its own, so that a pickle can do nothing with it but call it."""

    name: str
    call: Callable[..., Any]


def put_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """``target[key] = value`` for keys whose hash is cheap, ModelError for others."""
    if not (isinstance(key, str) or (type(key) is int and abs(key) < MAX_INT_KEY)):
        raise ModelError(f"a key in the pickle is a {type(key).__name__}; expected text or a small integer")
    target[key] = value


_PUSHES_ARGUMENT = frozenset(
    [
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    ]
)
_PUSHES_CONSTANT: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_of_marked,
    "TUPLE1": lambda machine, _: machine.tuple_of_top(1),
    "TUPLE2": lambda machine, _: machine.tuple_of_top(2),
    "TUPLE3": lambda machine, _: machine.tuple_of_top(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
_IGNORED = frozenset(["PROTO", "FRAME", "STOP"])

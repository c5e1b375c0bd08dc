"""The checkpoint reader on hostile and broken pickles, in both formats."""

from __future__ import annotations

import os
import pickle
import struct
import time

import pytest
from pth_files import GOOD, call, dict_of, integer, name, refused_body, storage, tensor, text, tuple_of


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_shell_command_is_not_run(protocol, tmp_path):
    proof = tmp_path / "proof"
    body = pickle.dumps({"w": Shell(f"touch {proof}")}, protocol)[2:-1]
    refused_body(tmp_path, body, r"asks for '(posix|nt)\.system', which is refused")
    assert not proof.exists()


GLOBALS = [
    "builtins.eval",
    "builtins.getattr",
    "builtins.__import__",
    "os.system",
    "subprocess.Popen",
    "numpy.core.multiarray._reconstruct",
    "argparse.Namespace",
    "torch.load",
    "torch.storage._load_from_bytes",
    "torch.nn.modules.conv.Conv2d",
    "torch._utils._rebuild_qtensor",
    "collections.OrderedDict.__init__",
    "collections.defaultdict",
    "qtool.frontends.pth.read_state_dict",
]


@pytest.mark.parametrize("full", GLOBALS)
def test_other_globals_are_named_and_refused(full, tmp_path):
    module, _, attribute = full.rpartition(".")
    refused_body(tmp_path, dict_of({"w": call(full, text("1"))}), f"asks for '{full}', which is refused")
    refused_body(tmp_path, text(module) + text(attribute) + b"\x93", f"asks for '{full}', which is refused")


W = tensor(storage("0", 12), (12,))
BROKEN = {
    "empty pickle": (b"", "does not end with one object"),
    "two objects": (b"}}", "does not end with one object"),
    "open mark": (b"(}", "does not end with one object"),
    "no mark": (b"t", "no mark is open"),
    "pop of nothing": (b"00", "stack is empty"),
    "append to a dict": (b"}" + integer(1) + b"a", "a list was expected"),
    "items to a list": (b"](" + text("a") + W + b"u", "a dict was expected"),
    "key without value": (b"}(" + text("a") + b"u", "a dict key has no value"),
    "unknown memo": (b"h\x07", "refers to an object that it has not made"),
    "put of nothing": (b"q\x00", "a object was expected"),
    "calls a string": (text("os.system") + tuple_of(text("ls")) + b"R", "calls what is not a function"),
    "calls a storage class": (call("torch.FloatStorage", integer(9)), "calls what is not a function"),
    "calls with a list": (name("collections.OrderedDict") + b"]R", "calls what is not a function"),
    "too few arguments": (call("torch._utils._rebuild_tensor_v2", storage("0", 12)), "unfit arguments"),
    "state of a tensor": (dict_of({"w": W + b"}b"}), "a dict was expected"),
    "state of a function": (name("collections.OrderedDict") + b"}b", "a dict was expected"),
    "instance opcode": (b"(ios\nsystem\n", "uses INST, which is refused"),
    "object opcode": (b"(" + name("collections.OrderedDict") + b"o", "uses OBJ, which is refused"),
    "new-object opcode": (name("collections.OrderedDict") + b")\x81", "uses NEWOBJ, which is refused"),
    "extension registry": (b"\x82\x01", "uses EXT1, which is refused"),
    "text persistent id": (b"Pstorage\n", "uses PERSID, which is refused"),
    "text integer": (b"I" + b"9" * 100 + b"\n", "uses INT, which is refused|broken"),
    "name that is a number": (integer(1) + integer(2) + b"\x93", "a global's name is not text"),
    "truncated text": (b"X\xff\xff\xff\x7fab", "broken"),
    "huge bytes": (b"\x8e" + struct.pack("<Q", 2**62) + b"ab", "broken"),
    "bad utf-8": (b"X\x02\x00\x00\x00\xff\xff", "broken"),
    "odd escape in a name": (rb"cos\ system" + b"\nx\n", "which is refused"),
    "unknown opcode": (b"\xfe", "broken"),
    "tuple as a key": (b"}" + tuple_of(text("a")) + W + b"s", "a key in the pickle is a tuple"),
    "float as a key": (b"}G" + struct.pack(">d", 1.5) + W + b"s", "a key in the pickle is a float"),
    "huge integer as a key": (b"}" + integer(2**61 - 1) + W + b"s", "a key in the pickle is a int"),
    "state dict is a list": (b"](" + W + b"e", "holds a list; expected a state dict"),
    "state dict is a tensor": (W, "holds a Tensor; expected a state dict"),
    "state dict is empty": (b"}", "the state dict is empty"),
    "entry is a number": (dict_of({"w": integer(3)}), "entry 'w' is a int; expected a tensor"),
    "entry is a function": (dict_of({"w": name("collections.OrderedDict")}), "entry 'w' is a Callable"),
    "entry is a storage": (dict_of({"w": storage("0", 12)}), "entry 'w' is a Storage"),
    "nested state is not tensors": (dict_of({"state_dict": dict_of({"w": b"]"})}), "entry 'w' is a list"),
    "ordered dict of a number": (call("collections.OrderedDict", integer(1)), "not a list"),
    "ordered dict of singles": (call("collections.OrderedDict", b"](" + tuple_of(W) + b"e"), "not a pair"),
    "parameter of a number": (call("torch._utils._rebuild_parameter", integer(1)), "not a tensor"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pickles(case, tmp_path):
    refused_body(tmp_path, *BROKEN[case])


FLOATS = storage("0", 12)
TENSORS = {
    "too many elements": (tensor(FLOATS, (13,)), "does not fit its storage of 12"),
    "offset behind the end": (tensor(FLOATS, (1,), (1,), 12), "does not fit"),
    "stride behind the end": (tensor(FLOATS, (4,), (4,)), "does not fit"),
    "expanded to a bomb": (tensor(FLOATS, (2**40, 12), (0, 1)), "does not fit"),
    "absurd size": (tensor(FLOATS, (2**62 - 1, 2**62 - 1)), "does not fit|broken"),
    "absurd empty size": (tensor(FLOATS, (0, 2**61), (1, 1)), "does not fit"),
    "negative size": (tensor(FLOATS, (-1, -12), (12, 1)), "shape or stride"),
    "negative stride": (tensor(FLOATS, (12,), (-1,), 11), "shape or stride"),
    "negative offset": (tensor(FLOATS, (2,), (1,), -1), "description of a tensor is broken"),
    "huge offset": (tensor(FLOATS, (2,), (1,), 2**100), "description of a tensor is broken"),
    "stride of another rank": (tensor(FLOATS, (3, 4), (1,)), "shape or stride"),
    "forty dimensions": (tensor(FLOATS, (1,) * 40), "shape or stride"),
    "storage is text": (tensor(text("0"), (12,)), "description of a tensor is broken"),
    "not a storage id": (tensor(tuple_of(text("module"), text("a")) + b"Q", (12,)), "does not describe a storage"),
    "id is text": (tensor(text("storage") + b"Q", (12,)), "does not describe a storage"),
    "negative storage": (tensor(storage("0", -1), (1,)), "description of a storage is broken"),
    "class is text": (
        tensor(tuple_of(text("storage"), text("f4"), text("0"), text("cpu"), integer(12)) + b"Q", (12,)),
        "description of a storage is broken",
    ),
    "view of a storage": (tensor(storage("0", 12, "torch.FloatStorage", tuple_of()), (12,)), "views of storages"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_broken_tensors(case, tmp_path):
    body, message = TENSORS[case]
    refused_body(tmp_path, dict_of({"w": body}), message)


def test_nested_tuples_take_no_time(tmp_path):
    """Fifty doublings: walking what they describe, as repr, hash or == do, would never end."""
    doublings = (b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(50))
    bomb = b")q\x000" + b"".join(doublings) + b"h\x32"
    start = time.process_time()
    refused_body(tmp_path, dict_of({"w": W, "bomb": bomb}), "entry 'bomb' is a tuple")
    refused_body(tmp_path, b"}" + bomb + W + b"s", "a key in the pickle is a tuple")
    refused_body(tmp_path, dict_of({"w": tensor(bomb, (1,))}), "description of a tensor is broken")
    refused_body(tmp_path, dict_of({"w": tensor(bomb + b"Q", (1,))}), "does not describe a storage")
    assert time.process_time() - start < 5


def test_endless_pickles_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("qtool.frontends.unpickle.MAX_OPCODES", 1000)
    refused_body(tmp_path, b"}0" * 600 + GOOD, "more than 1000 operations")


def test_deep_nesting_does_not_crash(tmp_path):
    refused_body(tmp_path, b"]" * 100_000 + b"a" * 99_999, "holds a list; expected a state dict")

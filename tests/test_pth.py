"""The checkpoint reader on good files, as torch writes them, and on broken containers; all made by hand."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pth_files import (
    GOOD,
    NUMBERS,
    call,
    counts,
    dict_of,
    integer,
    legacy_file,
    pickled,
    refused,
    refused_body,
    storage,
    tensor,
    text,
    zip_file,
)

from qtool.errors import ModelError
from qtool.frontends import read_state_dict
from qtool.frontends.pth import LEGACY_MAGIC

# Good files.


def test_a_tensor_of_each_format(tmp_path):
    for path in (
        zip_file(tmp_path / "a.pth", GOOD, {"0": NUMBERS.tobytes()}),
        legacy_file(tmp_path / "b.th", GOOD, {"0": NUMBERS}),
    ):
        read = read_state_dict(path)
        assert list(read) == ["w"]
        assert read["w"].dtype == np.float32
        np.testing.assert_array_equal(read["w"], NUMBERS.reshape(3, 4))


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("Float", np.array([1.5, -2], "<f4"), np.array([1.5, -2], np.float32)),
        ("Double", np.array([1.5, -2], "<f8"), np.array([1.5, -2], np.float64)),
        ("Half", np.array([1.5, -2], "<f2"), np.array([1.5, -2], np.float32)),
        ("BFloat16", np.array([0x3FC0, 0xC000], "<u2"), np.array([1.5, -2], np.float32)),
        ("Long", np.array([1, -2], "<i8"), np.array([1, -2], np.int64)),
        ("Int", np.array([1, -2], "<i4"), np.array([1, -2], np.int32)),
        ("Short", np.array([1, -2], "<i2"), np.array([1, -2], np.int16)),
        ("Char", np.array([1, -2], "<i1"), np.array([1, -2], np.int8)),
        ("Byte", np.array([1, 254], "<u1"), np.array([1, 254], np.uint8)),
        ("Bool", np.array([2, 0], "<u1"), np.array([True, False])),
    ],
)
def test_element_types(kind, data, expected, tmp_path):
    body = dict_of({"w": tensor(storage("0", 2, f"torch.{kind}Storage"), (2,))})
    read = read_state_dict(zip_file(tmp_path / "a.pth", body, {"0": data.tobytes()}))["w"]
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)


def test_views_of_one_storage(tmp_path):
    views = {
        "transposed": tensor(storage("0", 12), (4, 3), (1, 4)),
        "row": tensor(storage("0", 12), (4,), (1,), 8),
        "every second": tensor(storage("0", 12), (2,), (2,), 1),
        "scalar": tensor(storage("0", 12), (), (), 11),
        "empty": tensor(storage("0", 12), (0, 5)),
        "parameter": call("torch._utils._rebuild_parameter", tensor(storage("0", 12), (12,)), b"\x88", b"}"),
    }
    table = NUMBERS.reshape(3, 4)
    for path in (
        zip_file(tmp_path / "a.pth", dict_of(views), {"0": NUMBERS.tobytes()}),
        legacy_file(tmp_path / "b.th", dict_of(views), {"0": NUMBERS}),
    ):
        read = read_state_dict(path)
        np.testing.assert_array_equal(read["transposed"], table.T)
        np.testing.assert_array_equal(read["row"], table[2])
        np.testing.assert_array_equal(read["every second"], [NUMBERS[1], NUMBERS[3]])
        assert read["scalar"].shape == ()
        assert read["scalar"] == NUMBERS[11]
        assert read["empty"].shape == (0, 5)
        np.testing.assert_array_equal(read["parameter"], NUMBERS)
        assert not any(array.flags.writeable for key, array in read.items() if key != "empty")


def test_the_prefix_of_data_parallel_goes_only_when_all_keys_have_it(tmp_path):
    w = tensor(storage("0", 12), (12,))
    data = {"0": NUMBERS.tobytes()}
    both = dict_of({"state_dict": dict_of({"module.a": w, "module.module.b": w}), "epoch": integer(90)})
    assert list(read_state_dict(zip_file(tmp_path / "a.pth", both, data))) == ["a", "module.b"]
    one = dict_of({"module.a": w, "b": w})
    assert list(read_state_dict(zip_file(tmp_path / "b.pth", one, data))) == ["module.a", "b"]


def test_metadata_of_a_state_dict_is_passed_over(tmp_path):
    state = call("collections.OrderedDict") + b"(" + text("w") + tensor(storage("0", 12), (12,)) + b"u"
    body = state + dict_of({"_metadata": call("collections.OrderedDict")}) + b"b"
    assert list(read_state_dict(zip_file(tmp_path / "a.pth", body, {"0": NUMBERS.tobytes()}))) == ["w"]


def test_an_old_ordered_dict_of_pairs(tmp_path):
    pairs = b"](" + b"](" + text("w") + tensor(storage("0", 12), (12,)) + b"ee"
    body = call("collections.OrderedDict", pairs)
    assert list(read_state_dict(zip_file(tmp_path / "a.pth", body, {"0": NUMBERS.tobytes()}))) == ["w"]


# Broken containers.


def test_compressed_archives_are_refused(tmp_path):
    bomb = {"0": bytes(10**7)}
    path = zip_file(tmp_path / "bomb.pth", GOOD, bomb, compression=zipfile.ZIP_DEFLATED)
    refused(path, "compressed")


def test_records_that_overlap_are_refused(tmp_path):
    path = zip_file(tmp_path / "a.pth", GOOD, {"0": NUMBERS.tobytes(), "1": bytes(5000)})
    data = path.read_bytes()
    # The central directory lists one record a hundred times over.
    end = data.rindex(b"PK\x05\x06")
    count, _, size, start = struct.unpack("<HHII", data[end + 8 : end + 20])
    directory = data[start : start + size]
    entry = directory[directory.rindex(b"PK\x01\x02", 0, directory.index(b"data/1")) :]
    entry = entry[: entry.index(b"PK\x01\x02", 4)]
    tail = struct.pack("<HHII", count + 100, count + 100, size + 100 * len(entry), start)
    path.write_bytes(data[:start] + directory + entry * 100 + data[end : end + 8] + tail + data[end + 20 :])
    refused(path, "overlap")


@pytest.mark.parametrize(
    ("records", "extra", "message"),
    [
        ({}, None, "has no record 'archive/data/0'"),
        ({"0": bytes(47)}, None, "has 47 bytes; 12 elements of 4 were expected"),
        ({"0": bytes(52)}, None, "has 52 bytes"),
        ({"0": bytes(48)}, {"archive/byteorder": b"big"}, "big-endian"),
        ({"0": bytes(48)}, {"archive/constants.pkl": b""}, "TorchScript"),
        ({"0": bytes(48)}, {"other/data.pkl": b""}, "no single data.pkl"),
    ],
)
def test_broken_archives(records, extra, message, tmp_path):
    refused(zip_file(tmp_path / "a.pth", GOOD, records, extra), message)


def test_a_storage_of_two_descriptions(tmp_path):
    twice = {"a": tensor(storage("0", 12), (12,)), "b": tensor(storage("0", 6, "torch.DoubleStorage"), (6,))}
    refused_body(tmp_path, dict_of(twice), "described in two ways")


def test_a_damaged_storage_is_noticed(tmp_path):
    path = zip_file(tmp_path / "a.pth", GOOD, {"0": NUMBERS.tobytes()})
    data = bytearray(path.read_bytes())
    data[data.index(NUMBERS.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    refused(path, "zip archive is broken")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not a model", "not a file of torch.save"),
        (b"\x80\x02K\x01.", "not a file of torch.save"),
        (b"PK\x03\x04", "zip archive is broken"),
        (b"\x93NUMPY", "not a file of torch.save"),
        (pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(7, 2), "not of protocol 1001"),
        (pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": 0}, 2), "big-endian"),
        (pickle.dumps(LEGACY_MAGIC, 2) + b"\x80\x02" + storage("0", 1) + b".", "asks for 'torch.FloatStorage'"),
        (pickle.dumps(LEGACY_MAGIC, 2) + b"\x80\x02NQ.", "a storage stands where none belongs"),
    ],
)
def test_files_of_other_kinds(content, message, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    refused(path, message)


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / "none.pth", "cannot be read")
    refused(tmp_path, "cannot be read")


def test_broken_legacy_streams(tmp_path):
    path = legacy_file(tmp_path / "a.th", GOOD, {"0": NUMBERS})
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(path, "ends inside the storage '0'")
    path.write_bytes(data.replace(struct.pack("<q", 12), struct.pack("<q", 11)))
    refused(path, "has 11 elements, its tensors say 12")
    refused(legacy_file(path, GOOD, {}), "storage '0' is missing")
    refused(legacy_file(path, GOOD, {"0": NUMBERS, "1": NUMBERS}), "'1' belongs to no tensor")
    refused(legacy_file(path, GOOD, {"0": NUMBERS}, little=False), "big-endian")


W = tensor(storage("0", 12), (12,))
GOOD_FILES: list[bytes] = []


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_mutated_files_give_model_errors_or_arrays(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    if not GOOD_FILES:
        body = dict_of(
            {"state_dict": dict_of({"a": W, "b": tensor(storage("0", 12), (3, 4), (1, 3))}), "n": integer(3)}
        )
        GOOD_FILES.append(zip_file(folder / "seed.pth", body, {"0": NUMBERS.tobytes()}).read_bytes())
        GOOD_FILES.append(legacy_file(folder / "seed.th", body, {"0": NUMBERS}).read_bytes())
    content = bytearray(data.draw(st.sampled_from(GOOD_FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        if not content:
            break
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "insert", "cut", "end"]))
        if change == "flip":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 16))]
        else:
            del content[max(at, 1) :]
    path = folder / "mutated.pth"
    path.write_bytes(content)
    try:
        read = read_state_dict(path)
    except ModelError:
        return
    assert all(isinstance(array, np.ndarray) and array.size <= 12 for array in read.values())


@pytest.mark.skipif("QTOOL_TEST_DATA" not in os.environ, reason="QTOOL_TEST_DATA does not point at the real models")
def test_real_checkpoints():
    data = Path(os.environ["QTOOL_TEST_DATA"])
    resnet = read_state_dict(data / "cifar10" / "resnet20-12fca82f.th")
    assert sum(array.size for key, array in resnet.items() if "running" not in key and "num_" not in key) == 269_722
    assert resnet["conv1.weight"].shape == (16, 3, 3, 3)
    denoiser = read_state_dict(data / "denoise" / "DnCNN_sigma25_state_dict.pth")
    assert denoiser["dncnn.0.weight"].shape == (64, 1, 3, 3)
    assert 0.01 < denoiser["dncnn.2.weight"].std() < 1


def test_the_writer_of_this_file_agrees_with_pickle():
    """The hand-written opcodes are what Python's own unpickler understands too."""
    assert pickle.loads(pickled(dict_of({"a": counts((1, 300, -5, 2**40)), "b": b"\x89"}))) == {
        "a": (1, 300, -5, 2**40),
        "b": False,
    }
    assert pickle.load(io.BytesIO(pickled(call("collections.OrderedDict")))) == {}

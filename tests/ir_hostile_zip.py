"""Hostile zip archives."""

from __future__ import annotations

import pickle
import struct

import numpy as np
from ir_hostile import WEIGHT, changed_entry, hostile, repacked
from ir_raw import Entry, deflated, entries_of, npy, raw_zip


@hostile("it is empty")
def an_empty_file(good):
    return b""


@hostile("not a zip archive")
def plain_text(good):
    return b"this is not a model at all\n" * 10


@hostile("not a zip archive")
def a_bare_pickle(good):
    return pickle.dumps({"weights": [1, 2, 3]})


@hostile("end record is missing")
def only_the_magic(good):
    return b"PK\3\4"


@hostile("end record is missing")
def a_truncated_archive(good):
    return repacked(good)[:-1]


@hostile("end record is missing")
def half_an_archive(good):
    whole = repacked(good)
    return whole[: len(whole) // 2]


@hostile("end record is missing")
def something_behind_the_end(good):
    return repacked(good) + b"<script>"


@hostile("not a zip archive")
def something_before_the_start(good):
    return b"#!/bin/sh\n" + repacked(good)


@hostile("comment")
def a_comment(good):
    return raw_zip(entries_of(good))[:-2] + b"\1\0"


@hostile("does not fit the file")
def a_directory_offset_beyond_the_file(good):
    return raw_zip(entries_of(good), offset=2**31)


@hostile("does not fit the file")
def more_members_than_bytes(good):
    return raw_zip(entries_of(good), count=60_000)


@hostile("bytes more than its")
def fewer_members_than_listed(good):
    return raw_zip(entries_of(good), count=len(good) - 1)


@hostile("zip64 locator is missing")
def zip64_without_a_record(good):
    return raw_zip(entries_of(good), count=0xFFFF)


@hostile("at most 100003 are read")
def a_million_members(good):
    # The directory is there in full: 46 bytes and a name for each.
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *([0] * 9), 1, *([0] * 6)) + b"a"
    directory, count = entry * 1_000_000, 1_000_000
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), 4)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 4 + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"PK\3\4" + directory + record + locator + end


@hostile("zip64 end record is missing")
def a_zip64_record_elsewhere(good):
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 2**60, 1)
    return raw_zip(entries_of(good), count=0xFFFF, extra_record=bytes(56) + locator)


@hostile("one part of several")
def the_second_disk(good):
    return raw_zip(entries_of(good), disk=1)


@hostile("is there twice")
def two_members_of_one_name(good):
    return raw_zip([*entries_of(good), Entry(WEIGHT, good[WEIGHT])])


@hostile("overlaps the one before it")
def overlapping_members(good):
    data = npy(np.zeros(4, np.float32))
    inner = Entry("b.bias.npy", data)
    hidden = raw_zip([inner])[: -22 - 46 - len(inner.name)]
    outer, *others = entries_of(good)
    inner.begin, inner.in_directory_only = 30 + len(outer.name) + len(outer.data), True
    outer.data += hidden
    return raw_zip([outer, inner, *others])


@hostile("does not follow the one before it")
def a_hole_between_members(good):
    return changed_entry(good, gap=b"hidden")


@hostile("between the last member and the directory")
def a_hole_before_the_directory(good):
    return raw_zip(entries_of(good), between=b"hidden")


@hostile("is not where the directory says")
def a_member_beyond_the_directory(good):
    return changed_entry(good, begin=2**31)


@hostile("is not where the directory says")
def a_member_that_begins_nowhere(good):
    return changed_entry(good, begin=7)


@hostile("reaches past the end")
def a_member_longer_than_the_file(good):
    return changed_entry(good, size=2**31, stored=2**31)


@hostile("another size or check sum")
def two_sizes_for_one_member(good):
    return changed_entry(good, local_size=1)


@hostile("of another kind, where its data are")
def two_names_for_one_member(good):
    return changed_entry(good, local_name="A.weight.q.npy")


@hostile("lacks its zip64 sizes")
def a_zip64_size_that_is_not_given(good):
    return changed_entry(good, size=0xFFFFFFFF)


@hostile("reaches past the end")
def a_zip64_size_of_exabytes(good):
    extra = struct.pack("<2H2Q", 1, 16, 2**62, 2**62)
    return changed_entry(good, size=0xFFFFFFFF, stored=0xFFFFFFFF, extra=extra, flags=8)


@hostile("compressed or encrypted")
def a_zip_bomb(good):
    packed = deflated(bytes(50_000_000))
    return changed_entry(good, data=packed, method=8, stored=len(packed), size=50_000_000)


@hostile("compressed or encrypted")
def a_compressed_graph(good):
    packed = deflated(good["@graph.npy"])
    return changed_entry(good, "@graph.npy", data=packed, method=8, stored=len(packed), size=len(good["@graph.npy"]))


@hostile("compressed or encrypted")
def an_encrypted_member(good):
    return changed_entry(good, flags=1)


@hostile("compressed or encrypted")
def a_data_descriptor(good):
    return changed_entry(good, flags=8)


@hostile("compressed or encrypted")
def an_unknown_compression(good):
    return changed_entry(good, method=99)


@hostile("is damaged")
def a_damaged_weight(good):
    return changed_entry(good, crc=1)


@hostile("is damaged")
def a_damaged_graph(good):
    return changed_entry(good, "@graph.npy", crc=1)


@hostile("no paths")
def a_path_upwards(good):
    return repacked(good, **{"../../etc/passwd.npy": npy(np.zeros(1, np.float32))})


@hostile("no paths")
def an_absolute_path(good):
    return repacked(good, **{"/etc/passwd.npy": npy(np.zeros(1, np.float32))})


@hostile("no paths")
def a_name_with_a_backslash(good):
    return repacked(good, **{"..\\a.npy": npy(np.zeros(1, np.float32))})


@hostile("no paths")
def a_name_escaped_in_two_ways(good):
    return repacked(good, **{"a%2eweight.npy": npy(np.zeros(1, np.float32))})


@hostile("no paths")
def a_name_with_terminal_codes(good):
    return repacked(good, **{"\x1b[2J.npy": npy(np.zeros(1, np.float32))})


@hostile("broken name")
def an_endless_name(good):
    return repacked(good, **{"a" * 60_000 + ".npy": npy(np.zeros(1, np.float32))})


@hostile("not a qtool model")
def no_graph(good):
    return repacked(good, graph=None)


@hostile("not a qtool model")
def no_members_at_all(good):
    return raw_zip([])

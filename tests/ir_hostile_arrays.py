"""Hostile arrays in honest archives."""

from __future__ import annotations

import numpy as np
from ir_hostile import WEIGHT, hostile, repacked
from ir_raw import npy, npy_text


@hostile("never unpickles")
def a_pickle_for_a_weight(good):
    return repacked(good, weight=npy(np.array([{"a": 1}], object)))


@hostile("never unpickles")
def a_pickle_for_the_graph(good):
    return repacked(good, graph=npy(np.array([print], object)))


@hostile("element type")
def a_record_array(good):
    return repacked(good, weight=npy(np.zeros(3, [("a", "<f4"), ("b", "<i4")])))


@hostile("never unpickles")
def a_record_with_objects(good):
    return repacked(good, weight=npy(np.zeros(3, [("a", "O")])))


@hostile("element type")
def an_array_of_text(good):
    return repacked(good, weight=npy(np.array(["a", "b"])))


@hostile("element type '<c8'; expected plain numbers or bool")
def an_unsupported_element_type(good):
    return repacked(good, weight=npy(np.zeros(3, np.complex64)))


@hostile("is big-endian")
def a_big_endian_array(good):
    return repacked(good, **{"a.bias.npy": npy(np.zeros(5, ">f4"))})


@hostile("Fortran order")
def a_fortran_array(good):
    return repacked(good, weight=npy(np.asfortranarray(np.ones((5, 3, 3, 3), np.int8))))


@hostile("is not a NumPy array")
def a_member_that_is_no_array(good):
    return repacked(good, weight=b"import os; os.system('true')")


@hostile("is not a NumPy array")
def an_empty_member(good):
    return repacked(good, weight=b"")


@hostile("version 9")
def an_unknown_array_version(good):
    return repacked(good, weight=good[WEIGHT][:6] + b"\x09\0" + good[WEIGHT][8:])


@hostile("cut off or longer")
def an_array_header_that_is_too_long(good):
    return repacked(good, weight=good[WEIGHT][:8] + b"\xff\xff" + good[WEIGHT][10:])


@hostile("not as NumPy writes it")
def an_array_header_that_is_code(good):
    return repacked(good, weight=npy_text("__import__('os').system('true')"))


@hostile("not as NumPy writes it")
def an_array_header_of_brackets(good):
    return repacked(good, weight=npy_text("(" * 3000))


@hostile("bytes of elements; expected")
def an_array_larger_than_its_member(good):
    return repacked(good, weight=npy_text("{'descr': '|i1', 'fortran_order': False, 'shape': (1000000000,), }", b"abc"))


@hostile("more than")
def an_absurd_array_shape(good):
    return repacked(
        good, weight=npy_text("{'descr': '|i1', 'fortran_order': False, 'shape': (99999999999999, 99999999999999), }")
    )


@hostile("at most 16 sizes")
def an_array_with_a_hundred_axes(good):
    shape = "(" + "1, " * 100 + ")"
    return repacked(good, weight=npy_text(f"{{'descr': '|i1', 'fortran_order': False, 'shape': {shape}, }}", b"a"))


@hostile("more than")
def an_empty_array_with_absurd_sizes(good):
    return repacked(good, weight=npy_text("{'descr': '|i1', 'fortran_order': False, 'shape': (0, 999999999999999), }"))


@hostile("the graph says int8 of shape")
def a_weight_of_another_shape(good):
    return repacked(good, weight=npy(np.zeros((5, 3, 3), np.int8)))


@hostile("the graph says int8 of shape")
def a_weight_of_another_type(good):
    return repacked(good, weight=npy(np.zeros((5, 3, 3, 3), np.float32)))


@hostile("'a.weight.q' has no array|no array and no node makes")
def a_missing_weight(good):
    return repacked(good, weight=None)


@hostile("initializer 'z' is not among the values")
def a_weight_too_many(good):
    return repacked(good, **{"z.npy": npy(np.zeros(3, np.float32))})


@hostile("expected float32 with one axis")
def scales_of_another_type(good):
    return repacked(good, scales=npy(np.ones(10, np.float64)))


@hostile("expected int32 with one axis")
def zero_points_of_another_shape(good):
    return repacked(good, zeros=npy(np.zeros((1, 5), np.int32)))


@hostile("within a table of 0")
def missing_scales(good):
    return repacked(good, scales=None)


@hostile("scale nan; expected a positive")
def scales_that_are_nan(good):
    return repacked(good, scales=npy(np.full(10, np.nan, np.float32)))


@hostile("zero_point 1000; expected -128..127")
def zero_points_out_of_range(good):
    return repacked(good, zeros=npy(np.full(5, 1000, np.int32)))


@hostile("expected uint8 with one axis")
def a_graph_of_floats(good):
    return repacked(good, graph=npy(np.zeros(5)))

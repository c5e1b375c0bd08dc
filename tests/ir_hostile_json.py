"""Hostile graphs in honest arrays."""

from __future__ import annotations

import json

from ir_hostile import edit, hostile, repacked
from ir_raw import graph_member, graph_of


@hostile("is not JSON")
def an_empty_graph(good):
    return repacked(good, graph=graph_member(b""))


@hostile("is not UTF-8")
def a_graph_in_latin_1(good):
    return repacked(good, graph=graph_member(b'{"schema":"\xe9"}'))


@hostile("is not JSON")
def a_graph_cut_off(good):
    return repacked(good, graph=graph_member(b'{"schema":"qtool.graph/1"'))


@hostile("expected an object")
def a_graph_that_is_a_list(good):
    return repacked(good, graph=graph_member(b"[1,2,3]"))


@hostile("key 'schema' is there twice")
def a_key_twice(good):
    return repacked(good, graph=graph_member(b'{"schema":"a","schema":"b"}'))


@hostile("NaN is not a JSON number")
def nan_in_the_graph(good):
    return repacked(good, graph=graph_member(b'{"schema":NaN}'))


@hostile("does not fit 64 bits")
def an_integer_of_a_million_digits(good):
    return repacked(good, graph=graph_member(b'{"schema":' + b"9" * 1_000_000 + b"}"))


@hostile("too large or too long")
def a_float_of_a_million_digits(good):
    return repacked(good, graph=graph_member(b'{"schema":0.' + b"9" * 1_000_000 + b"}"))


@hostile("too large or too long")
def a_float_that_overflows(good):
    return repacked(good, graph=graph_member(b'{"schema":1e999}'))


@hostile("nested 1000000 deep")
def a_graph_nested_a_million_deep(good):
    return repacked(good, graph=graph_member(b"[" * 1_000_000 + b"]" * 1_000_000))


@hostile("nested 3000 deep")
def deep_nesting_hidden_behind_text(good):
    return repacked(good, graph=graph_member(rb'["\"]]]]]]", ' + b"[" * 2999 + b"]" * 3000))


@hostile("at most 4000000 are read")
def ten_million_nodes(good):
    return repacked(good, graph=graph_member(b'{"nodes":[' + b"{}," * 10_000_000 + b"{}]}"))


@hostile("at most 33554432 are read")
def a_graph_of_forty_megabytes(good):
    return repacked(good, graph=graph_member(b" " * 40_000_000))


@edit("schema is 'qtool.graph/3'; this version")
def a_later_schema(doc):
    doc["schema"] = "qtool.graph/3"


@edit("unknown entry 'extra'")
def an_unknown_entry(doc):
    doc["extra"] = 1


@edit("has no 'outputs'")
def a_missing_entry(doc):
    del doc["outputs"]


@edit("with arithmetic 'magic' is not known")
def another_arithmetic(doc):
    doc["arithmetic"] = "magic"


@edit("backend 'tpu'")
def another_backend(doc):
    doc["backend"] = "tpu"


@edit("200000 nodes; at most 100000 are read")
def too_many_nodes(doc):
    doc["nodes"] = [0] * 200_000


@edit("'nodes' is 3; expected a list")
def a_number_for_nodes(doc):
    doc["nodes"] = 3


@edit("node 0 is None; expected an object")
def a_null_node(doc):
    doc["nodes"][0] = None


@edit("'inputs' holds 5; expected texts")
def a_number_for_an_input(doc):
    doc["nodes"][0]["inputs"] = [5]


@edit("unknown entry 'code'")
def a_node_with_code(doc):
    doc["nodes"][0]["code"] = "import os"


@edit("before conv2d 'b.q' makes it: a cycle")
def a_cycle(doc):
    doc["nodes"][1]["inputs"][0] = "b.q"


@edit("two nodes are called")
def two_nodes_of_one_name(doc):
    doc["nodes"][1]["name"] = "b.q"


@edit("has no array|no array and no node")
def a_node_removed(doc):
    del doc["nodes"][1]


@edit("refers to 'nowhere'")
def an_unknown_value(doc):
    doc["nodes"][1]["inputs"].append("nowhere")


@edit("has an attribute {'a': 1}")
def an_attribute_that_is_an_object(doc):
    doc["nodes"][1]["attrs"]["stride"] = {"a": 1}


@edit("nested deeper than 8")
def a_deep_attribute(doc):
    value: list = []
    for _ in range(20):
        value = [value]
    doc["nodes"][1]["attrs"]["stride"] = value


@edit("deeper than 32")
def deep_meta(doc):
    for _ in range(40):
        doc["meta"] = {"a": doc["meta"]}


@edit("element type 'object'")
def a_value_of_objects(doc):
    doc["values"]["x"]["dtype"] = "object"


@edit("expected an integer or a symbol")
def a_size_that_is_a_float(doc):
    doc["values"]["x"]["shape"] = [1.5]


@edit("expected sizes and symbols")
def a_negative_size(doc):
    doc["values"]["x"]["shape"] = [-1]


@edit("more than 1099511627776 elements")
def an_absurd_shape(doc):
    doc["values"]["x"]["shape"] = [2**40, 2**40]


@edit("scale 0.0; expected a positive")
def a_zero_scale(doc):
    doc["values"]["x.q"]["scale"] = 0


@edit("scale -0.1")
def a_negative_scale(doc):
    doc["values"]["x.q"]["scale"] = -0.1


@edit("does not fit float32")
def a_scale_beyond_float32(doc):
    doc["values"]["x.q"]["scale"] = 1e300


@edit("expected one number, as it has no axis")
def channels_without_an_axis(doc):
    doc["values"]["x.q"]["scale"] = [0, 5]


@edit("zero_point 256; expected 0..255")
def a_zero_point_out_of_range(doc):
    doc["values"]["x.q"]["zero_point"] = 256


@edit("does not fit 32 bits")
def a_zero_point_beyond_32_bits(doc):
    doc["values"]["x.q"]["zero_point"] = 2**40


@edit("'zero_point'")
def no_zero_point(doc):
    del doc["values"]["x.q"]["zero_point"]


@edit("within a table of")
def a_slice_beyond_its_table(doc):
    doc["values"]["a.weight.q"]["scale"] = [8, 5]


@edit("within a table of")
def a_negative_slice(doc):
    doc["values"]["a.weight.q"]["scale"] = [-5, 5]


@edit("along axis 7")
def an_axis_that_is_not_there(doc):
    doc["values"]["a.weight.q"]["axis"] = 7


@edit("expected float32 of shape")
def fewer_scales_than_channels(doc):
    doc["values"]["a.weight.q"]["scale"] = [0, 4]


@edit("is uint8 with parameters|float32 with parameters")
def parameters_of_a_float(doc):
    doc["values"]["x"].update(scale=1.0, zero_point=0)


@edit("graph input 'a.bias' is an initializer")
def an_input_that_is_a_weight(doc):
    doc["inputs"].append("a.bias")


@hostile("printable characters")
def half_a_character_for_a_name(good):
    return repacked(good, graph=graph_member(json.dumps(graph_of(good) | {"name": "\ud800"}).encode("ascii")))

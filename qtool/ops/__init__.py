"""The operator registry: importing this package registers every operator."""

from qtool.ops import (
    activation,
    binary,
    cast,
    control,
    conv,
    dynamic,
    elementwise,
    embedding,
    generate,
    index,
    linear,
    norm,
    pool,
    quantize,
    rearrange,
    reduce,
    reductions,
    search,
    shape,
    unary,
)
from qtool.ops.builder import Builder
from qtool.ops.check import check_types, keeps_parameters
from qtool.ops.registry import (
    Attrs,
    OpSpec,
    QuantRule,
    all_ops,
    attrs_of,
    get,
    infer_node,
    parse_attrs,
    plain_attrs,
    register,
)
from qtool.ops.table import operator_table

FAMILIES = (
    activation,
    binary,
    cast,
    control,
    conv,
    dynamic,
    elementwise,
    embedding,
    generate,
    index,
    linear,
    norm,
    pool,
    quantize,
    rearrange,
    reduce,
    reductions,
    search,
    shape,
    unary,
)
"""The modules whose import filled the registry."""

__all__ = [
    "FAMILIES",
    "Attrs",
    "Builder",
    "OpSpec",
    "QuantRule",
    "all_ops",
    "attrs_of",
    "check_types",
    "get",
    "infer_node",
    "keeps_parameters",
    "operator_table",
    "parse_attrs",
    "plain_attrs",
    "register",
]

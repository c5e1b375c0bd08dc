"""Blocks of pixels to channels and back; named and defined as ONNX has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qtool.ir import Array, Dim, TensorType
from qtool.ops.dims import UNKNOWN, divide, need_rank, product
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import linear_of


@dataclass(frozen=True)
class DepthToSpaceAttrs(Attrs):
    """A block's pixels come from channels that lie apart (DCR) or side by side (CRD, PyTorch's ``PixelShuffle``)."""

    blocksize: int
    mode: Literal["DCR", "CRD"] = "DCR"


@dataclass(frozen=True)
class SpaceToDepthAttrs(Attrs):
    blocksize: int
    mode: Literal["DCR", "CRD"] = "DCR"


def _part(dim: Dim, block: int, what: str) -> Dim:
    part = divide(dim, block)
    require(part is not None or isinstance(dim, str), f"{dim} {what}", f"a multiple of {block}")
    return UNKNOWN if part is None else part


def depth_to_space_type(attrs: DepthToSpaceAttrs, x: TensorType) -> tuple[TensorType, ...]:
    need_rank("x", x, 4, "NCHW")
    block = attrs.blocksize
    require(block >= 1, f"blocksize {block}", "at least 1")
    batch, channels, height, width = x.shape
    shape = (batch, _part(channels, block * block, "channels"), product((height, block)), product((width, block)))
    return (TensorType(x.dtype, shape),)


def depth_to_space(attrs: DepthToSpaceAttrs, x: Array) -> tuple[Array, ...]:
    batch, channels, height, width = x.shape
    block = attrs.blocksize
    rest = channels // (block * block)
    if attrs.mode == "DCR":
        split = x.reshape(batch, block, block, rest, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        split = x.reshape(batch, rest, block, block, height, width).transpose(0, 1, 4, 2, 5, 3)
    return (split.reshape(batch, rest, height * block, width * block),)


def space_to_depth_type(attrs: SpaceToDepthAttrs, x: TensorType) -> tuple[TensorType, ...]:
    need_rank("x", x, 4, "NCHW")
    block = attrs.blocksize
    require(block >= 1, f"blocksize {block}", "at least 1")
    batch, channels, height, width = x.shape
    sizes = (_part(height, block, "rows"), _part(width, block, "columns"))
    return (TensorType(x.dtype, (batch, product((channels, block * block)), *sizes)),)


def space_to_depth(attrs: SpaceToDepthAttrs, x: Array) -> tuple[Array, ...]:
    batch, channels, height, width = x.shape
    block = attrs.blocksize
    split = x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if attrs.mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return (split.transpose(order).reshape(batch, channels * block * block, height // block, width // block),)


def _depth_back(call: VjpCall, grad: Array) -> Array:
    return space_to_depth(SpaceToDepthAttrs(call.attrs.blocksize, call.attrs.mode), grad)[0]


def _space_back(call: VjpCall, grad: Array) -> Array:
    return depth_to_space(DepthToSpaceAttrs(call.attrs.blocksize, call.attrs.mode), grad)[0]


SAME = QuantRule.SAME_AS_INPUT
register(
    OpSpec(
        "depth_to_space",
        DepthToSpaceAttrs,
        ("x",),
        depth_to_space_type,
        depth_to_space,
        SAME,
        onnx=("DepthToSpace",),
        kernel="depth_to_space",
        vjp=linear_of(_depth_back),
    )
)
register(
    OpSpec(
        "space_to_depth",
        SpaceToDepthAttrs,
        ("x",),
        space_to_depth_type,
        space_to_depth,
        SAME,
        onnx=("SpaceToDepth",),
        kernel="space_to_depth",
        vjp=linear_of(_space_back),
    )
)

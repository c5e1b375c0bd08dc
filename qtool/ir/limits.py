"""Bounds on what a graph and its file may hold, so that a hostile file costs little time and memory.

They are far above any real model. Whatever is refused names the bound, so that one that proves too low is easily found.
"""

from __future__ import annotations

import reprlib

MAX_FILE_BYTES = 64 << 30
"""The largest model file: checking the sums of a sparse file must end."""
MAX_JSON_BYTES = 32 << 20
"""The graph's JSON: some 250 bytes a node, so room for 100,000 of them."""
MAX_JSON_TOKENS = 4_000_000
"""Brackets, commas and colons of the JSON. Each costs up to 72 bytes once parsed: about 300 MB at most."""
MAX_JSON_DEPTH = 64
MAX_NODES = 100_000
MAX_VALUES = 400_000
MAX_INITIALIZERS = 100_000
MAX_MEMBERS = MAX_INITIALIZERS + 3
MAX_CHANNELS = 16_000_000
"""Per-channel parameters of the whole graph: 64 MB."""
MAX_RANK = 16
MAX_ELEMENTS = 1 << 40
"""Elements of one tensor, sizes only known at run time counted as 1."""
MAX_NAME = 1024
MAX_TEXT = 65_536
"""Length of an attribute's text."""
MAX_ATTR_DEPTH = 8
MAX_META_DEPTH = 32
MAX_GRAPH_DEPTH = 8
"""Bodies within bodies; the outermost graph does not count."""
MAX_BODIES = 10_000
INT64 = range(-(1 << 63), 1 << 63)


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 80, 80


def shown(value: object) -> str:
    """What a file holds as a message may show it: quoted, control characters escaped, cut at 80 characters."""
    quoted = _REPR.repr(value)
    return quoted if len(quoted) <= 80 else quoted[:77] + "..."

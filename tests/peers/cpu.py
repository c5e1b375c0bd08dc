"""What the other engines' int8 kernels need of a CPU to give exact sums."""

from __future__ import annotations

from pathlib import Path

import pytest

_INFO = Path("/proc/cpuinfo")
HAS_VNNI = _INFO.exists() and not {"avx512_vnni", "avx_vnni"}.isdisjoint(_INFO.read_text().split())
WHY_VNNI = "on a CPU without VNNI the other engine's int8 kernels saturate, and give other numbers"
needs_vnni = pytest.mark.skipif(not HAS_VNNI, reason=WHY_VNNI)

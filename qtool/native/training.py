"""The float32 operators of a training step, forward and backward, on NumPy arrays.

    training = Training(threads=2)
    y = training.conv(x, weight, bias, ConvGeometry(padding=((1, 1), (1, 1))))

Arrays are float32 and C-contiguous, activations NHWC or [rows, channels]. Every function checks what it is given
(EngineError with what was got and expected) and gives the same bits for every number of threads.
"""

from __future__ import annotations

from qtool.native.operators import Operators
from qtool.native.training_conv import ConvGeometry, ConvTraining
from qtool.native.training_pool import PoolTraining
from qtool.native.training_quant import ElementTraining
from qtool.native.training_rows import RowTraining

__all__ = ["ConvGeometry", "Training"]


class Training(ConvTraining, PoolTraining, RowTraining, ElementTraining):
    """Threads and instruction set (None: the best of this CPU) are chosen once; EngineError without the native library.

    One object serves one thread of the program at a time.
    """

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        self._operators = Operators(threads, isa)

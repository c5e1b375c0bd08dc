"""Everything that training has changed in a model, as named arrays: for the best epoch, and for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array
from qtool.quantize.qat.fake_quant import FakeQuant
from qtool.quantize.qat.model import QatModel

PARAMETER, STATISTIC, QUANTIZER = "parameter", "statistic", "quantizer"


def take(model: QatModel) -> dict[str, Array]:
    """Copies of all parameters, running statistics and states of fake quantizers, by ``KIND/NAME``."""
    state = model.state
    found = {f"{PARAMETER}/{name}": array for name, array in state.parameters.items() if name not in model.scales}
    found |= {f"{STATISTIC}/{name}": array for name, array in state.statistics.items()}
    for name, quantizer in _quantizers(model):
        found |= {f"{QUANTIZER}/{name}/{key}": array for key, array in quantizer.state().items()}
    return {name: array.copy() for name, array in found.items()}


def put(model: QatModel, arrays: Mapping[str, Array]) -> None:
    """The inverse of ``take``; ModelError where the arrays are not those of this model."""
    for kind, into in ((PARAMETER, model.state.parameters), (STATISTIC, model.state.statistics)):
        for name in [name for name in into if name not in model.scales]:
            into[name][...] = _array(arrays, f"{kind}/{name}", into[name].shape)
    for name, quantizer in _quantizers(model):
        start = f"{QUANTIZER}/{name}/"
        quantizer.restore({key.removeprefix(start): each for key, each in arrays.items() if key.startswith(start)})
    model.adopt_scales()


def _quantizers(model: QatModel) -> Iterator[tuple[str, FakeQuant]]:
    """Each once: activations by the first value of their group, then weights."""
    for group in model.source.prepared.groups:
        yield f"activation/{group.values[0]}", model.quantizers[group.values[0]]
    for name, quantizer in model.weight_quantizers.items():
        yield f"weight/{name}", quantizer


def _array(arrays: Mapping[str, Array], key: str, shape: tuple[int, ...]) -> Array:
    found = arrays.get(key)
    if found is None or found.shape != shape or found.dtype != np.float32:
        got = "nothing" if found is None else f"{found.dtype.name} of shape {found.shape}"
        raise ModelError(f"the state of training has {got} for {key}; expected float32 of shape {shape}")
    return found

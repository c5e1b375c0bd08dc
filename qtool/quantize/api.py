"""The whole of quantization in one call, for Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qtool.ir import Array, Graph
from qtool.quantize.calibrate import Calibrated, calibrate
from qtool.quantize.convert import convert
from qtool.quantize.prepare import PrepareOptions, prepare
from qtool.recipe.schema import QConfig, Rule


@dataclass(frozen=True)
class Quantized:
    """The int8 graph, and what led to it (parameters, ranges, fallbacks, warnings)."""

    graph: Graph
    calibrated: Calibrated


def quantize(
    graph: Graph,
    qconfig_dict: Mapping[str, QConfig | None],
    batches: Iterable[Mapping[str, Array]] = (),
    options: PrepareOptions = PrepareOptions(),
    *,
    threads: int = 1,
    debug: bool = False,
) -> Quantized:
    """Fuses, prepares, calibrates and converts a float graph.

    ``qconfig_dict`` maps module paths, ``"type:<operator>"``, ``"re:<regex>"`` or ``""`` (everything) to a qconfig, or
    to None for layers that stay in float. ``batches`` are dicts of float32 arrays by input name, in the graph's layout;
    dynamic mode needs none. Raises RecipeError, DataError or QuantizationError, each naming the layer.
    """
    rules = [Rule(key, qconfig) for key, qconfig in qconfig_dict.items()]
    calibrated = calibrate(prepare(graph, rules, options), batches, threads=threads)
    return Quantized(convert(calibrated, debug=debug), calibrated)

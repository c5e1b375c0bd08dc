"""Graph -> ONNX: float graphs as they are, quantized ones as QuantizeLinear/DequantizeLinear pairs (QDQ).

``emitter`` collects ONNX nodes, ``call`` is one operator of the graph as its row in ``table`` sees it, ``bodies``
exports a graph or the body of a control-flow node, ``model`` makes the file; the other modules hold the rows by family.
"""

from qtool.exporters.onnx.model import DEFAULT_OPSET, Exported, export_onnx

__all__ = ["DEFAULT_OPSET", "Exported", "export_onnx"]

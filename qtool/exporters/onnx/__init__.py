"""Graph -> ONNX: float graphs as they are, quantized ones as QuantizeLinear/DequantizeLinear pairs (QDQ).

``emitter`` collects ONNX nodes, ``call`` is one operator of the graph as its row in ``table`` sees it, ``bodies``
exports a graph or the body of a control-flow node, ``model`` makes the file; the other modules hold the rows by family.

What the model means is float arithmetic between roundings; run so (ONNX Runtime with ``ORT_DISABLE_ALL``, or its
session option ``session.disable_quant_qdq``), layers agree with qtool but for a rounding in a million. What runtimes
make of it, measured with ONNX Runtime 1.31:

- Convolutions and linear layers become int8 kernels (QLinearConv, QGemm). Those round biases to integers: exactly what
  qnnpack does, for the other backends up to half an accumulator step off, which moves a few outputs in a thousand.
- A layer with a residual of its own (one rounding: backend onednn, preset ``accurate``) has no such kernel there and
  runs in float; OpenVINO has one.
- Signed activations with zero points run slower there than unsigned ones: layers at branches stay in float.
- On CPUs without VNNI its u8 x s8 kernels saturate; 7-bit activations (fbgemm, ``reduce_range``) cannot.
"""

from qtool.exporters.onnx.model import DEFAULT_OPSET, Exported, export_onnx

__all__ = ["DEFAULT_OPSET", "Exported", "export_onnx"]

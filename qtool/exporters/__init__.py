"""Writers of other tools' model files."""

from qtool.exporters.onnx import DEFAULT_OPSET, Exported, export_onnx

__all__ = ["DEFAULT_OPSET", "Exported", "export_onnx"]

"""Quantization-aware training: prepare, train with fake quantization, convert, on the same graph as without training."""

"""Quantization-aware training: prepare, train with fake quantization and convert, all on one graph."""

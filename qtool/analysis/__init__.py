"""What a quantized model is worth: metrics, accuracy and latency side by side, and the Numeric Suite."""

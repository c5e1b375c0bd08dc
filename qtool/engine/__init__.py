"""What runs a graph: the NumPy reference, which defines every operator in float and in int8, and the native engine."""

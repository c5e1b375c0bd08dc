"""The operator registry: importing this package registers every operator."""

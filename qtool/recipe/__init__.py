"""Recipes: frozen types, presets, reading YAML, and which rule is for which layer."""

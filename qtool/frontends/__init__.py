"""Readers of other tools' model files."""

from qtool.frontends.pth import read_state_dict

__all__ = ["read_state_dict"]

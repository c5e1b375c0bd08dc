"""Frozen results of a run; rendering is the command line's."""

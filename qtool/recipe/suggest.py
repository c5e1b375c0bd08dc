"""The nearest right spelling, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 16


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The known name most like ``wrong``, whatever the case; "" where none is."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(wrong.lower(), by_lower, 1, 0.5)
    return by_lower[found[0]] if found else ""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean 'x'?", or what there is to choose from."""
    names = list(known)
    found = nearest(wrong, names)
    if found:
        return f"; did you mean '{found}'?"
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"; expected one of: {shown}" if names else ""

"""The nearest right spelling, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_LISTED = 16
_ALIKE = 0.5


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The known name most like ``wrong``, whatever the case, letters in another order first; "" where none is."""
    matcher = SequenceMatcher(b=wrong.lower())

    def likeness(name: str) -> tuple[bool, float]:
        matcher.set_seq1(name.lower())
        return sorted(name.lower()) == sorted(wrong.lower()), matcher.ratio()

    best = max(known, key=likeness, default="")
    return best if likeness(best)[1] >= _ALIKE else ""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean 'x'?", or what there is to choose from."""
    names = list(known)
    found = nearest(wrong, names)
    if found:
        return f"; did you mean '{found}'?"
    shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"; expected one of: {shown}" if names else ""

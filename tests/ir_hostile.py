"""How hostile model files are made: functions that change a good file's members, found by name."""

from __future__ import annotations

from collections.abc import Callable

from ir_raw import entries_of, graph_member, graph_of, raw_zip

Members = dict[str, bytes]
FILES: dict[str, tuple[str, Callable[[Members], bytes]]] = {}
"""Name: what the error must say (a regular expression), and the function that makes the file."""
WEIGHT = "a.weight.q.npy"


def hostile(match: str) -> Callable:
    """Registers a function that makes a hostile file of a good one's members, and what the error must say."""

    def register(make: Callable[[Members], bytes]) -> Callable:
        name = make.__name__.replace("_", " ")
        assert name not in FILES
        FILES[name] = (match, make)
        return make

    return register


def edit(match: str) -> Callable:
    """The same for a function that changes the graph's JSON in place."""

    def register(change: Callable[[dict], None]) -> Callable:
        def make(good: Members) -> bytes:
            document = graph_of(good)
            change(document)
            return repacked(good, graph=graph_member(document))

        make.__name__ = change.__name__
        hostile(match)(make)
        return change

    return register


def repacked(members: Members, **changes: bytes | None) -> bytes:
    """The members with some replaced (keys without ``.npy``, ``graph`` for ``@graph``); None drops one."""
    made = dict(members)
    for key, data in changes.items():
        name = {"graph": "@graph.npy", "weight": WEIGHT, "scales": "@scales.npy", "zeros": "@zero_points.npy"}.get(
            key, key
        )
        if data is None:
            del made[name]
        else:
            made[name] = data
    return raw_zip(entries_of(made))


def changed_entry(members: Members, name: str = WEIGHT, **fields: object) -> bytes:
    entries = entries_of(members)
    index = [entry.name for entry in entries].index(name)
    for field, value in fields.items():
        setattr(entries[index], field, value)
    return raw_zip(entries)

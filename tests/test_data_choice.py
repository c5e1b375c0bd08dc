"""Samples chosen by ``shuffle`` and ``samples``: the same ones whatever the data lie in, parts apart."""

from __future__ import annotations

import numpy as np
import pytest
from data_samples import RNG, X, Y, folder_of, gathered, model, opened, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import LAYOUTS

from qtool.errors import DataError
from qtool.quantize.data import fingerprint, open_data
from qtool.quantize.data_combine import chosen_numbers
from qtool.recipe.schema import DataConfig

ORDER = [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
"""Of ten samples with seed 0: a file that says ``shuffle: 0`` must mean the same samples for ever."""


def numbers(total: int, **config: object) -> list[int]:
    return list(chosen_numbers(DataConfig("d", **config), total))


def test_a_seed_gives_one_order_for_ever():
    assert numbers(10, shuffle=0) == ORDER
    assert numbers(10, shuffle=0, samples=(2, 5)) == ORDER[2:5]
    assert numbers(10, shuffle=1) != ORDER
    assert sorted(numbers(1000, shuffle=7)) == list(range(1000))


def test_shuffling_is_fair():
    places = np.array([numbers(6, shuffle=seed).index(0) for seed in range(1200)])
    assert np.abs(np.bincount(places, minlength=6) - 200).max() < 60  # 4.6 standard deviations


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from([name for name in LAYOUTS if "split" not in name]),
    shuffle=st.one_of(st.none(), st.integers(0, 99)),
    span=st.tuples(st.integers(0, 40), st.integers(41, 50) | st.none()),
    size=st.integers(1, 30),
    batches=st.none() | st.integers(1, 4),
)
def test_every_layout_gives_the_chosen_samples(layout, shuffle, span, size, batches, tmp_path_factory):
    made = LAYOUTS[layout](tmp_path_factory.mktemp("d"))
    config = DataConfig(made.path, batch_size=size, batches=batches, shuffle=shuffle, samples=span)
    data = open_data(config, model())
    wanted = numbers(50, shuffle=shuffle, samples=span)[: size * batches if batches else None]
    feeds, labels = gathered(data)
    assert np.array_equal(feeds["image"], X[wanted])
    assert np.array_equal(labels, Y[wanted])
    assert data.samples == len(wanted)
    assert data.fingerprint() == fingerprint([{"image": X[wanted]}])
    assert np.array_equal(gathered(data)[0]["image"], X[wanted]), "a second pass begins at the start again"


def test_parts_of_one_file_do_not_overlap(tmp_path):
    saved(tmp_path / "d.npz", x=X, y=Y)
    first, _ = gathered(opened(tmp_path / "d.npz", shuffle=3, samples=(0, 20)))
    rest, _ = gathered(opened(tmp_path / "d.npz", shuffle=3, samples=(20, None)))
    both = np.concatenate([first["image"], rest["image"]]).reshape(50, -1)
    assert len(rest["image"]) == 30
    assert np.array_equal(both[np.lexsort(both.T)], X.reshape(50, -1)[np.lexsort(X.reshape(50, -1).T)])


def test_every_batch_of_compressed_pieces_is_read_from_one_copy(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    for name, part in (("a", X[:20]), ("b", X[20:])):
        np.savez_compressed(tmp_path / "d" / f"{name}.npz", x=part)
    calls = []
    from qtool.quantize import data_combine

    monkeypatch.setattr(
        data_combine, "spooled", lambda source, real=data_combine.spooled: calls.append(1) or real(source)
    )
    gathered(opened(tmp_path / "d", shuffle=1, batch_size=7))
    assert calls == [1]


@pytest.mark.parametrize("span", [(0, 51), (50, None), (60, 70)])
def test_ranges_beyond_the_data(span, tmp_path):
    saved(tmp_path / "d.npz", x=X)
    with pytest.raises(DataError, match=r"d.npz: 'samples: \[.*\]' reaches beyond the 50 samples that there are"):
        opened(tmp_path / "d.npz", samples=span)


@pytest.mark.parametrize("config", [{"samples": (3, 9)}, {"shuffle": 5}])
def test_messages_count_as_the_file_does(config, tmp_path):
    wrong = X.copy()
    wrong[7] = np.nan
    data = opened(saved(tmp_path / "d.npz", x=wrong), **config)
    with pytest.raises(DataError, match="nan in sample 7"):
        gathered(data)
    labels = np.where(np.arange(50) == 7, 10, 0)
    with pytest.raises(DataError, match="label 10 at sample 7;"):
        opened(saved(tmp_path / "e.npz", x=X, y=labels), **config)


def test_only_labels_in_use_are_checked(tmp_path):
    labels = np.where(np.arange(50) == 7, 10, 0)
    assert opened(saved(tmp_path / "d.npz", x=X, y=labels), samples=(8, None)).samples == 42


def test_a_model_of_fixed_batches(tmp_path):
    folder_of(tmp_path / "d", x=RNG.standard_normal((10, 3), np.float32))
    graph = model({"x": (4, 3)})
    assert len(opened(tmp_path / "d", graph, samples=(1, 9))) == 2
    with pytest.raises(DataError, match="7 samples cannot be cut into those"):
        opened(tmp_path / "d", graph, samples=(1, 8))

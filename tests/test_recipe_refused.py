"""Recipes that are refused, with the line and what to write instead."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_cases import SMALL, WRONG_BY_SCHEMA, refusal

from qtool.errors import RecipeError
from qtool.recipe.load import load_recipe
from qtool.recipe.yamlfile import MAX_BYTES

WRONG_OTHERWISE = [
    (
        "evaluation:\n  data: d\n  preprocess:\n    colour: gray\n    std: [1, 2, 3]\n",
        8,
        "evaluation.preprocess.std: got 3 numbers, expected one for all channels or 1 for 'colour: gray'",
    ),
    ("evaluation: {data: d, samples: [5, 5]}\n", 4, "samples: got [5, 5], expected the first to be less than the"),
    (
        "evaluation:\n  data: d\n  labels: l.csv\n  preprocess: {noise: {sigma: 25}}\n",
        6,
        "evaluation.labels: 'noise' makes the clean pictures the targets",
    ),
    (
        "evaluation:\n  data: d\n  metric: psnr\n  preprocess: {noise: {sigma: 25}, range: [0, 255]}\n",
        7,
        "evaluation.preprocess: psnr is of pictures in 0..1; leave out range, mean and std",
    ),
    ("evaluation: {data: d, preprocess: {range: [1, 0]}}\n", 4, "range: got [1, 0], expected the first to be less"),
    ("gates: {min_size_ratio: .inf}\n", 4, "gates.min_size_ratio: got '.inf', expected a number"),
    ("gates: {min_size_ratio: 1:30}\n", 4, "got '1:30', expected a number"),
    ("gates: {max_accuracy_drop: 0.1}\n", 4, "gates.max_accuracy_drop needs an evaluation block"),
    ("gates: {max_metric: 0.1}\n", 4, "gates.max_metric needs an evaluation block"),
    ("gates: {min_speedup: 1}\n", 4, "gates.min_speedup needs a latency block"),
    ("qconfig_dict: {a: null, b: ~}\n", 4, "every rule is null"),
    ("qconfig_dict: {a: {activation: {percentile: 98}}}\n", 4, "takes no option 'percentile'; it takes bins"),
    ("qconfig_dict: {a: {activation: {quant_min: 0}}}\n", 4, "quant_min and quant_max go together"),
    ("qconfig_dict: {a: {activation: {observer: placeholder}}}\n", 4, "'placeholder' is for mode: dynamic"),
    ("qconfig_dict: {a: {preset: dynamic, mode: static}}\n", 4, "the observer 'placeholder' is for mode: dynamic"),
    (
        "qconfig_dict: {a: {activation: {observer: per_channel_min_max, scheme: per_channel_affine}}}\n",
        4,
        "activations are quantized per tensor",
    ),
    (
        "qconfig_dict: {a: {activation: {observer: min_max, scheme: per_channel_affine}}}\n",
        4,
        "expected a per tensor scheme, or the observer per_channel_min_max",
    ),
    ("qconfig_dict: {a: {weight: {dtype: quint8}}}\n", 4, "the kernels take weights of dtype qint8"),
    ("qconfig_dict: {a: {weight: {scheme: per_channel_affine}}}\n", 4, "with a symmetric scheme"),
    ("qconfig_dict: {a: {weight: {observer: placeholder}}}\n", 4, "is for activations"),
    ("qconfig_dict: {a: {activation: {observer: fixed, scale: 1.0}}}\n", 4, "needs the option 'zero_point'"),
    ("qconfig_dict:\n  'type:Conv2D': fbgemm\n", 5, "unknown operator; did you mean 'conv2d'?"),
    ("qconfig_dict:\n  're:[': fbgemm\n", 5, "'re:[' is not a regular expression"),
    ("model: b.npz\n", 4, "the key 'model' is there twice, first at"),
    ("gates:\n  min_speedup: 1\n  min_speedup: 2\n", 6, "the key 'min_speedup' is there twice"),
    ("? [a]\n: b\n", 4, "a key must be text"),
    ("fuse: !!python/object/apply:os.system [ls]\n", 4, "the YAML tag"),
    ("fuse: !!binary aGk=\n", 4, "the YAML tag"),
    ("<<: {debug: true}\n", 4, "unknown key '<<'"),
    ("fuse: [a\n", 5, "not valid YAML"),
    ("fuse: {a: b: c}\n", 4, "not valid YAML"),
    ("---\nmodel: x\n", 4, "not valid YAML"),
    ("fuse: *nowhere\n", 4, "not valid YAML"),
    ("\tfuse: auto\n", 4, "not valid YAML"),
]
"""What a schema cannot tell, or YAML libraries read in other ways."""


@pytest.mark.parametrize(
    ("text", "line", "message"), WRONG_BY_SCHEMA + WRONG_OTHERWISE, ids=lambda v: str(v).strip()[:40]
)
def test_what_is_wrong_is_refused_with_its_line(write, text, line, message) -> None:
    path = write(SMALL + text)
    found = refusal(path)
    assert found.startswith(f"{path}:{line}: ")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the recipe: got null, expected a mapping with the keys model, output"),
        ("- a\n", ":1: the recipe: got a list"),
        ("just text\n", ":1: the recipe: got 'just text'"),
        ("output: b.npz\n", ":1: model is missing: the float model"),
        ("model: a.npz\noutput: b.npz\n", ":1: calibration is missing: mode static needs data"),
        ("model: a.npz\noutput: ./a.npz\ncalibration: {data: c.npz}\n", ":2: output: is the model itself"),
        ("model: null\noutput: b.npz\n", ":1: model: got null, expected a path"),
        ('model: "a\\0b"\noutput: b.npz\n', ":1: model: got 'a\\x00b', expected a path"),
        ("a: \x07\n", ": not valid YAML"),
        ('a: "\\UFFFFFFFF"\n', ": not valid YAML"),
        ('a: "\\ud800"\n', ": not valid YAML"),
        ("[" * 5000, ": the values are nested too deeply"),
        ("- " * 5000, ": the values are nested too deeply"),
        ("&a [*a]", ": the values are nested too deeply"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 10)}]\n" for k in range(20)
        ), ": the recipe holds more than"),
        ("#" * (MAX_BYTES + 1), ": the recipe is larger than"),
    ],
    ids=lambda v: repr(v[:30]),
)  # fmt: skip
def test_hostile_and_broken_files(write, text, message) -> None:
    path = write(text)
    found = refusal(path)
    assert found.startswith(str(path))
    assert message in found
    assert len(found) < 500


def test_files_that_cannot_be_read(tmp_path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "nothing.yaml")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"model: \xff\xfe")
    assert "is not UTF-8 text (byte 7)" in refusal(binary)


words = st.sampled_from(["model", "output", "fuse", "auto", "qconfig_dict", "", "null", "1", "fbgemm", "weight", "mse"])
marks = st.sampled_from(
    [": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "'", '"', "|", "!!str ", "? "]
)


@given(st.lists(st.one_of(words, marks, st.text(max_size=3)), max_size=30).map("".join))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_gives_anything_but_a_recipe_error(write, text) -> None:
    try:
        path = write(text)
    except UnicodeEncodeError:
        return
    for content in (text, SMALL + text):
        path.write_text(content, encoding="utf-8")
        try:
            load_recipe(path)
        except RecipeError as error:
            assert str(path) in str(error)  # noqa: PT017 - whether it is raised is not the point

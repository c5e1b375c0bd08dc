"""Recipes: what loads, what is refused and where, overrides, presets, the schema and the template."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool.errors import RecipeError
from qtool.recipe.document import RECIPE
from qtool.recipe.jsonschema import recipe_schema
from qtool.recipe.load import load_recipe
from qtool.recipe.observers import problem_with
from qtool.recipe.presets import (
    PRESETS,
    default_for,
    get_default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    get_preset,
)
from qtool.recipe.schema import (
    Backend,
    DataConfig,
    Gates,
    LatencyConfig,
    Mode,
    Preprocess,
    QDType,
    Recipe,
    Scheme,
    Stubs,
)
from qtool.recipe.template import recipe_template
from qtool.recipe.yamlfile import MAX_BYTES

SMALL = """\
model: float.npz
output: int8.npz
calibration: {data: calib.npz}
"""

FULL = """\
model: ../models/float.npz
output: int8.npz
mode: static
backend: qnnpack
debug: true
qconfig_dict:
  "": default
  layer2: {activation: {observer: histogram, dtype: quint8, scheme: per_tensor_affine, reduce_range: true},
           weight: {observer: per_channel_min_max, dtype: qint8, scheme: per_channel_symmetric}}
  layer2.0.conv2: null
  "type:linear": {weight: {observer: mse}}
fuse: [[conv1, bn1, relu], [fc, act]]
stubs: {quant: [x], dequant: [fc]}
calibration: {data: data.npz, split: calib, batch_size: 16, batches: 4, shuffle: 7, samples: [0, 64]}
evaluation:
  data: images
  samples: [64, null]
  metric: top5
  labels: labels.csv
  preprocess: {resize: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
latency: {threads: 2, batch: 4, warmup: 0, seconds: 0.5}
gates: {max_accuracy_drop: 0.01, min_size_ratio: 3.5, min_speedup: 1}
report: {json: out/report.json}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


# What loads


def test_a_small_recipe_has_the_defaults(write, tmp_path) -> None:
    recipe = load_recipe(write(SMALL))
    assert recipe.model == tmp_path / "float.npz"
    assert recipe.output == tmp_path / "int8.npz"
    assert (recipe.mode, recipe.backend, recipe.debug, recipe.fuse) == (Mode.STATIC, Backend.FBGEMM, False, "auto")
    assert recipe.calibration == DataConfig(tmp_path / "calib.npz")
    assert (recipe.stubs, recipe.evaluation, recipe.latency, recipe.report_json) == (None, None, None, None)
    assert recipe.gates == Gates()
    assert [(rule.key, rule.qconfig) for rule in recipe.rules] == [("", get_default_qconfig("fbgemm"))]


def test_a_full_recipe(write, tmp_path) -> None:
    recipe = load_recipe(str(write(FULL)))
    preprocess = Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert recipe == Recipe(
        path=tmp_path / "recipe.yaml",
        model=tmp_path / "../models/float.npz",
        output=tmp_path / "int8.npz",
        mode=Mode.STATIC,
        backend=Backend.QNNPACK,
        rules=recipe.rules,
        debug=True,
        fuse=(("conv1", "bn1", "relu"), ("fc", "act")),
        stubs=Stubs(("x",), ("fc",)),
        calibration=DataConfig(tmp_path / "data.npz", "calib", 16, 4, shuffle=7, samples=(0, 64)),
        evaluation=DataConfig(
            tmp_path / "images",
            metric="top5",
            labels=tmp_path / "labels.csv",
            preprocess=preprocess,
            samples=(64, None),
        ),
        latency=LatencyConfig(2, 4, 0, 0.5),
        gates=Gates(0.01, 3.5, 1),
        report_json=tmp_path / "out/report.json",
        resolved=recipe.resolved,
    )
    rules = {rule.key: rule for rule in recipe.rules}
    assert rules[""].qconfig == get_preset("default")
    assert rules["layer2"].qconfig == replace(get_preset("fbgemm"), transposed_weight=None)  # its weight is given
    assert rules["layer2.0.conv2"].qconfig is None
    linear = rules["type:linear"].qconfig
    assert linear is not None
    assert linear.activation == get_preset("qnnpack").activation
    assert linear.weight.observer == "mse"
    lines = {key: rule.where.removeprefix(str(tmp_path)) for key, rule in rules.items()}
    assert lines == {
        "": "/recipe.yaml:7",
        "layer2": "/recipe.yaml:8",
        "layer2.0.conv2": "/recipe.yaml:10",
        "type:linear": "/recipe.yaml:11",
    }


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_the_resolved_recipe_is_plain_and_loads_as_the_same(write, text) -> None:
    recipe = load_recipe(write(text), ["qconfig_dict.zz=symmetric_qnnpack", "qconfig_dict.yy=accurate"])
    plain = json.loads(json.dumps(dict(recipe.resolved)))
    assert plain == dict(recipe.resolved)
    assert plain["mode"] == "static"
    assert plain["qconfig_dict"]["zz"]["weight"]["quant_min"] == -127
    again = load_recipe(write(yaml.safe_dump(plain)))
    assert {r.key: r.qconfig for r in again.rules} == {r.key: r.qconfig for r in recipe.rules}
    assert again.resolved == recipe.resolved
    for name in ("model", "output", "mode", "backend", "debug", "fuse", "stubs", "calibration", "evaluation", "gates"):
        assert getattr(again, name) == getattr(recipe, name)


def test_paths_may_be_absolute(write) -> None:
    recipe = load_recipe(write(SMALL.replace("float.npz", "/somewhere/float.npz")))
    assert recipe.model == Path("/somewhere/float.npz")


def test_dynamic_mode_needs_no_data(write) -> None:
    recipe = load_recipe(write("model: a.npz\noutput: b.npz\nmode: dynamic\nqconfig_dict: {fc: per_channel_dynamic}\n"))
    assert recipe.calibration is None
    assert recipe.rules[0].qconfig == get_default_dynamic_qconfig(per_channel=True)


def test_null_means_the_default(write) -> None:
    recipe = load_recipe(write(SMALL + "gates: {min_speedup: null}\nevaluation:\nfuse: ~\n"))
    assert recipe.gates == Gates()
    assert recipe.evaluation is None
    assert recipe.fuse == "auto"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("0.5", 0.5), (".5", 0.5), ("1", 1), ("2E-4", 2e-4), ("+1e-1", 0.1)]
)
def test_numbers_are_read_as_people_write_them(write, text, value) -> None:
    assert load_recipe(write(SMALL + f"gates: {{min_size_ratio: {text}}}\n")).gates.min_size_ratio == value


def test_a_leading_zero_is_not_octal(write) -> None:
    assert load_recipe(write(SMALL + "latency: {warmup: 010}\n")).latency == LatencyConfig(warmup=10)


def test_keys_are_text_whatever_they_look_like(write) -> None:
    recipe = load_recipe(write(SMALL + "qconfig_dict: {1.0: fbgemm, 0: null, on: x86, null: fbgemm, 1e3: fbgemm}\n"))
    assert [rule.key for rule in recipe.rules] == ["1.0", "0", "on", "null", "1e3"]


def test_aliases_are_allowed(write) -> None:
    text = SMALL + "qconfig_dict:\n  a: &q {weight: {observer: percentile}}\n  b: *q\n"
    rules = load_recipe(write(text)).rules
    assert rules[0].qconfig == rules[1].qconfig
    assert rules[0].qconfig.weight.observer == "percentile"


# Filling in


def rule_of(write, text: str, backend: str = "fbgemm", mode: str = "static"):
    recipe = load_recipe(write(SMALL + f"backend: {backend}\nmode: {mode}\nqconfig_dict: {{x: {text}}}\n"))
    return recipe.rules[0].qconfig


@pytest.mark.parametrize("backend", ["fbgemm", "x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("mode", ["static", "dynamic", "qat"])
def test_gaps_are_filled_from_the_backend_and_mode(write, backend, mode) -> None:
    default = default_for(Mode(mode), Backend(backend))
    assert rule_of(write, "{}", backend, mode) == default
    assert rule_of(write, "{weight: {eps: 0.001}}", backend, mode).activation == default.activation
    assert rule_of(write, "{weight: {eps: 0.001}}", backend, mode).weight.eps == 0.001


def test_a_preset_may_be_changed_in_part(write) -> None:
    found = rule_of(write, "{preset: accurate, activation: {observer: percentile, percentile: 99.9}}")
    assert found.weight == get_preset("accurate").weight
    assert found.single_rounding
    assert found.activation.options == {"percentile": 99.9}


def test_a_new_observer_brings_its_granularity_and_drops_options(write) -> None:
    weight = rule_of(write, "{weight: {observer: min_max}}").weight
    assert (weight.observer, weight.scheme) == ("min_max", Scheme.PER_TENSOR_SYMMETRIC)
    weight = rule_of(write, "{weight: {scheme: per_tensor_symmetric}}").weight
    assert (weight.observer, weight.scheme) == ("min_max", Scheme.PER_TENSOR_SYMMETRIC)
    weight = rule_of(write, "{weight: {observer: moving_average_per_channel_min_max}}", "qnnpack").weight
    assert weight.scheme is Scheme.PER_CHANNEL_SYMMETRIC
    base = "{preset: fbgemm_qat, weight: {averaging_constant: 0.5}}"
    assert rule_of(write, base).weight.options == {"averaging_constant": 0.5}


def test_limits_and_reduce_range_replace_each_other(write) -> None:
    activation = rule_of(write, "{activation: {quant_min: 0, quant_max: 127}}").activation
    assert (activation.quant_min, activation.quant_max, activation.reduce_range) == (0, 127, False)
    activation = rule_of(write, "{preset: default, activation: {reduce_range: true}}").activation
    assert (activation.quant_min, activation.quant_max, activation.reduce_range) == (None, None, True)
    activation = rule_of(write, "{preset: default, activation: {dtype: qint8}}").activation
    assert (activation.quant_min, activation.quant_max, activation.dtype) == (None, None, QDType.QINT8)
    activation = rule_of(write, "{activation: {quant_min: 0, quant_max: 200, reduce_range: true}}").activation
    assert (activation.quant_max, activation.reduce_range) == (200, True)


# What is refused, with its line


WRONG_BY_SCHEMA = [
    ("modle: x.npz\n", 4, "unknown key 'modle'; did you mean 'model'?"),
    ("zzz: 1\n", 4, "unknown key 'zzz'; expected one of: model, output, mode"),
    ("backend: fbgem\n", 4, "backend: unknown value 'fbgem'; did you mean 'fbgemm'?"),
    ("backend: [fbgemm]\n", 4, "backend: got a list, expected one of: fbgemm, x86, onednn, qnnpack"),
    ("mode: 3\n", 4, "mode: got 3, expected one of"),
    ("\n# a comment\ndebug: 1\n", 6, "debug: got 1, expected true or false"),
    ("debug: 'true'\n", 4, "debug: got 'true', expected true or false"),
    ("gates:\n  min_speed: 1\n", 5, "unknown key 'min_speed' in gates; did you mean 'min_speedup'?"),
    ("gates:\n  min_size_ratio: high\n", 5, "gates.min_size_ratio: got 'high', expected a number from 0"),
    ("gates: {min_size_ratio: -1}\n", 4, "gates.min_size_ratio: got -1, expected a number from 0"),
    ("gates: {min_size_ratio: true}\n", 4, "gates.min_size_ratio: got true, expected a number"),
    ("gates: 3\n", 4, "gates: got 3, expected a mapping with the keys max_accuracy_drop, min_size_ratio"),
    ("latency:\n  threads: 0\n", 5, "latency.threads: got 0, expected a whole number from 1 to 1024"),
    ("latency: {threads: 1.5}\n", 4, "latency.threads: got 1.5, expected a whole number"),
    ("latency: {seconds: 0}\n", 4, "latency.seconds: got 0, expected a number above 0"),
    ("evaluation:\n  split: test\n", 4, "evaluation.data is missing"),
    ("evaluation: {data: d.npz, metric: top2}\n", 4, "evaluation.metric: unknown value 'top2'; did you mean 'top1'?"),
    ("evaluation: {data: 3}\n", 4, "evaluation.data: got 3, expected a path"),
    (
        "evaluation: {data: d, preprocess: {mean: [1, 2]}}\n",
        4,
        "preprocess.mean: got a list, expected a list of 1 or 3",
    ),
    ("evaluation: {data: d, preprocess: {std: [1, 0, 1]}}\n", 4, "preprocess.std[1]: got 0, expected a number above 0"),
    ("evaluation: {data: d, preprocess: {noise: {seed: 1}}}\n", 4, "evaluation.preprocess.noise.sigma is missing"),
    ("evaluation: {data: d, preprocess: {noise: {sigma: 0}}}\n", 4, "noise.sigma: got 0, expected a number above 0"),
    ("evaluation: {data: d, residual: 1}\n", 4, "evaluation.residual: got 1, expected true or false"),
    ("evaluation: {data: d, shuffle: true}\n", 4, "evaluation.shuffle: got true, expected a whole number"),
    ("evaluation: {data: d, samples: 5}\n", 4, "samples: got 5, expected a list of two numbers, the second of which"),
    ("evaluation: {data: d, samples: [null, 5]}\n", 4, "samples[0]: got null, expected a whole number"),
    ("evaluation: {data: d, audio: {window: 512}}\n", 4, "evaluation.audio.rate is missing"),
    (
        "evaluation:\n  data: d\n  audio: {rate: 8000, window: 9, features: magnitudes}\n",
        6,
        "evaluation.audio.features: unknown value 'magnitudes'; did you mean 'magnitude'?",
    ),
    ("evaluation: {data: d, audio: {rate: 8000, window: 0}}\n", 4, "audio.window: got 0, expected a whole number"),
    ("evaluation: {data: d, carry: [a]}\n", 4, "evaluation.carry: got a list, expected a mapping from names"),
    ("evaluation: {data: d, carry: {a: 3}}\n", 4, "evaluation.carry.a: got 3, expected the name of an input"),
    ("evaluation: {data: d, constants: {}}\n", 4, "evaluation.constants: got a mapping, expected a mapping from names"),
    ("evaluation: {data: d, constants: {a: b}}\n", 4, "constants.a: got 'b', expected a number, or true or false"),
    ("evaluation: {data: d, outputs: []}\n", 4, "evaluation.outputs: got a list, expected a list of one or more"),
    ("fuse: all\n", 4, "fuse: unknown value 'all'"),
    ("fuse:\n  - [a, b]\n  - c\n", 6, "fuse[1]: got 'c', expected a list"),
    ("fuse: [[a, 3]]\n", 4, "fuse[0][1]: got 3, expected the name of a module"),
    ("fuse: []\n", 4, "fuse: got a list, expected a list of one or more"),
    ("stubs: {quant: [x]}\n", 4, "stubs.dequant is missing"),
    ("stubs: none\n", 4, "stubs: unknown value 'none'"),
    ("qconfig_dict: fbgemm\n", 4, "qconfig_dict: got 'fbgemm', expected a mapping such as"),
    ("qconfig_dict: {}\n", 4, "qconfig_dict: got a mapping, expected a mapping such as"),
    ('qconfig_dict:\n  "": acurate\n', 5, "unknown value 'acurate'; did you mean 'accurate'?"),
    ("qconfig_dict:\n  a: fbgemm\n  b: 3\n", 6, "qconfig_dict.b: got 3, expected one of: accurate"),
    (
        "qconfig_dict:\n  a: {actvation: {}}\n",
        5,
        "unknown key 'actvation' in qconfig_dict.a; did you mean 'activation'?",
    ),
    ("qconfig_dict:\n  a:\n    weight:\n      obsrver: mse\n", 7, "unknown key 'obsrver' in qconfig_dict.a.weight"),
    ("qconfig_dict:\n  a:\n    weight:\n      observer: mes\n", 7, "unknown value 'mes'; did you mean 'mse'?"),
]
"""Text after SMALL, the line and the message; the JSON schema refuses these too."""

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


# Overrides


def rules_of(recipe: Recipe) -> dict[str, object]:
    return {rule.key: rule.qconfig for rule in recipe.rules}


def test_overrides_replace_and_add(write) -> None:
    path = write(FULL)
    recipe = load_recipe(path, ["backend=x86", "debug=false", "latency.threads=7", "gates={}", "calibration.batches=9"])
    assert (recipe.backend, recipe.debug, recipe.gates) == (Backend.X86, False, Gates())
    assert recipe.latency == LatencyConfig(7, 4, 0, 0.5)
    assert recipe.calibration is not None
    assert recipe.calibration.batches == 9
    assert load_recipe(write(SMALL), ["latency.threads=7"]).latency == LatencyConfig(threads=7)
    assert load_recipe(path, ["mode=qat", "mode=static"]).mode is Mode.STATIC
    assert load_recipe(path, ["evaluation=", "gates.max_accuracy_drop="]).evaluation is None
    assert load_recipe(path, ["fuse=[[a, b]]"]).fuse == (("a", "b"),)


def test_overrides_of_rules(write) -> None:
    path = write(FULL)
    changed = load_recipe(
        path,
        [
            "qconfig_dict.=accurate",
            "qconfig_dict.layer1.0.conv1=null",
            "qconfig_dict.layer2.0.conv2.weight.observer=mse",
            'qconfig_dict."odd.weight"=fbgemm',
            'qconfig_dict."a=b".activation.observer=mse',
            "qconfig_dict.re:layer[34]=x86",
            "qconfig_dict.type:conv2d={weight: {observer: percentile, percentile: 99}}",
        ],
    )
    rules = rules_of(changed)
    assert rules[""] == get_preset("accurate")
    assert rules["layer1.0.conv1"] is None
    assert rules["layer2.0.conv2"].weight.observer == "mse"
    assert rules["layer2.0.conv2"].activation == get_preset("qnnpack").activation
    assert rules["odd.weight"] == get_preset("fbgemm")
    assert rules["a=b"].activation.observer == "mse"
    assert rules["re:layer[34]"] == get_preset("x86")
    assert rules["type:conv2d"].weight.options == {"percentile": 99}
    assert rules["layer2"] == replace(get_preset("fbgemm"), transposed_weight=None)  # its weight is given
    where = {rule.key: rule.where for rule in changed.rules}
    assert where["layer1.0.conv1"] == "--set qconfig_dict.layer1.0.conv1=null"
    assert where["layer2"] == f"{path}:8"


def test_an_override_of_a_part_keeps_the_rest_of_a_preset(write) -> None:
    recipe = load_recipe(
        write(SMALL + 'qconfig_dict: {"": default, a.b: fbgemm}\n'), ["qconfig_dict..activation.eps=0.01"]
    )
    activation = rules_of(recipe)[""].activation
    assert (activation.observer, activation.quant_max, activation.eps) == ("min_max", 127, 0.01)
    recipe = load_recipe(write(SMALL), ["qconfig_dict.a.b.preset=default", "qconfig_dict.a.b.single_rounding=true"])
    assert rules_of(recipe)["a.b"].single_rounding
    assert rules_of(recipe)["a.b"].weight == get_preset("default").weight


def test_paths_in_overrides_start_at_the_current_folder(write, tmp_path, monkeypatch) -> None:
    path = write(SMALL)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_recipe(path, ["model=x.npz"]).model.resolve() == elsewhere / "x.npz"
    assert load_recipe(path, ["model=x.npz"]).output == tmp_path / "int8.npz"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backend=fbgem", "backend: unknown value 'fbgem'; did you mean 'fbgemm'?"),
        ("bakend=fbgemm", "unknown key 'bakend'; did you mean 'backend'?"),
        ("latency.thread=2", "unknown key 'thread' in latency; did you mean 'threads'?"),
        ("latency.threads=two", "latency.threads: got 'two', expected a whole number"),
        ("model.x=1", "model is not a mapping, and so has no key 'x'"),
        ("qconfig_dict.a=acurate", "qconfig_dict.a: unknown value 'acurate'; did you mean 'accurate'?"),
        ("qconfig_dict.a.weight.observer=mes", "did you mean 'mse'?"),
        ("qconfig_dict.re:(=null", "is not a regular expression"),
        ("qconfig_dict.a=[", "not valid YAML"),
        ("backend", "expected key.path=value"),
        ("=1", "expected key.path=value"),
        ("", "expected key.path=value"),
        (".a=1", "expected key.path=value"),
        ("a..b=1", "expected key.path=value"),
        ('"a=1', "expected key.path=value"),
        ("qconfig_dict.a", "expected key.path=value"),
    ],
)
def test_overrides_that_are_wrong(write, override, message) -> None:
    found = refusal(write(SMALL), override)
    assert found.startswith(f"--set {override}: ")
    assert message in found


# Presets


def test_presets_make_sense() -> None:
    for name, preset in PRESETS.items():
        assert preset.summary, name
        assert problem_with(preset.qconfig.activation) == ""
        assert problem_with(preset.qconfig.weight) == ""
        assert preset.qconfig.weight.dtype is QDType.QINT8
        assert preset.qconfig.weight.scheme.symmetric


def test_accurate_uses_all_bits() -> None:
    accurate = get_preset("accurate")
    assert not accurate.activation.reduce_range
    assert (accurate.activation.quant_min, accurate.activation.quant_max) == (None, None)
    assert accurate.weight.scheme is Scheme.PER_CHANNEL_SYMMETRIC
    assert accurate.single_rounding


def test_defaults_by_backend() -> None:
    assert get_default_qconfig(Backend.QNNPACK) == get_preset("qnnpack")
    assert get_default_qconfig() == get_preset("fbgemm")
    assert get_default_qat_qconfig("onednn") == get_preset("onednn_qat")
    assert get_default_dynamic_qconfig() == get_preset("dynamic")
    with pytest.raises(RecipeError, match="unknown backend 'fbgem'; did you mean 'fbgemm'"):
        get_default_qconfig("fbgem")
    with pytest.raises(RecipeError, match="unknown preset 'acurate'; did you mean 'accurate'"):
        get_preset("acurate")


# Schema and template


def validates(schema: dict, value: object) -> bool:
    """The few keywords of JSON schema that are used."""
    if "anyOf" in schema and not any(validates(option, value) for option in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float), "integer": int}
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind and (not isinstance(value, kinds[kind]) or (kind in ("number", "integer") and isinstance(value, bool))):
        return False
    if isinstance(value, dict) and kind == "object":
        return _object_validates(schema, value)
    if isinstance(value, list) and kind == "array":
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        kinds_of = schema.get("prefixItems") or [schema["items"]] * len(value)
        return size and all(validates(each, item) for each, item in zip(kinds_of, value, strict=True))
    if kind in ("number", "integer"):
        low = value > schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else value >= schema["minimum"]
        return low and value <= schema["maximum"]
    if "pattern" in schema and not (isinstance(value, str) and re.search(schema["pattern"], value)):
        return False
    return len(value) >= schema.get("minLength", 0) if isinstance(value, str) else True


def _object_validates(schema: dict, value: dict) -> bool:
    properties, others = schema.get("properties", {}), schema["additionalProperties"]
    if any(key not in value for key in schema.get("required", ())) or len(value) < schema.get("minProperties", 0):
        return False
    if others is False and set(value) - set(properties):
        return False
    return all(validates(properties.get(key, others), item) for key, item in value.items())


def test_the_schema_is_json_of_the_right_draft_and_names_every_key() -> None:
    schema = json.loads(json.dumps(recipe_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == set(RECIPE.keys)
    assert all(entry["description"] for entry in schema["properties"].values())


@pytest.mark.parametrize("text", [SMALL, FULL, recipe_template()])
def test_the_schema_accepts_what_loads(write, text) -> None:
    assert validates(recipe_schema(), yaml.safe_load(text))
    resolved = dict(load_recipe(write(text)).resolved)
    assert validates(recipe_schema(), resolved)


@pytest.mark.parametrize("text", [text for text, _, _ in WRONG_BY_SCHEMA])
def test_the_schema_refuses_what_does_not_load(text) -> None:
    assert not validates(recipe_schema(), yaml.safe_load(SMALL + text))


def test_the_template_proposes_accurate_and_loads(write, tmp_path) -> None:
    recipe = load_recipe(write(recipe_template("m.npz", "q.npz", "d.npz", Backend.QNNPACK, ("train", "val"))))
    assert rules_of(recipe) == {"": get_preset("accurate")}
    assert recipe.backend is Backend.QNNPACK
    assert recipe.model == tmp_path / "m.npz"
    assert recipe.calibration == DataConfig(tmp_path / "d.npz", "train", 32)
    assert recipe.evaluation == DataConfig(tmp_path / "d.npz", "val", 32, metric="top1")
    assert recipe.latency == LatencyConfig()
    assert recipe.gates == Gates(0.01, 3.5, 1.0)


@pytest.mark.parametrize(
    "name", ["a b.npz", "x: y.npz", "#1.npz", "no", "- a", 'quo"te.npz', "näme.npz", "100", "{a}", "\U0001f600"]
)
def test_the_template_quotes_what_yaml_would_misread(write, tmp_path, name) -> None:
    assert load_recipe(write(recipe_template(name, "q.npz", name))).model == tmp_path / name

"""Recipes: what loads, overrides, presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from recipe_cases import FULL, SMALL, refusal, rules_of

from qtool.errors import RecipeError
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
    train = "train: {data: train.npz}\n" if mode == "qat" else ""
    recipe = load_recipe(write(SMALL + f"backend: {backend}\nmode: {mode}\n{train}qconfig_dict: {{x: {text}}}\n"))
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


# Overrides


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

"""``qtool inspect``, ``zoo``, ``recipe`` and ``doctor``: what they tell."""

from __future__ import annotations

import json

from cli_cases import RECIPE, trained, workspace

import qtool as package
from qtool import native
from qtool.analysis.ceilings import Ceilings
from qtool.ir.npz import load, save
from qtool.recipe.schema import ZOO_NAMES


def test_inspect_says_what_would_be_quantized(cli, quantized):
    plain = cli("inspect", "float.npz", "--json").json
    assert plain["schema"] == "qtool.inspect/1"
    states = {layer["name"]: layer["precision"] for layer in plain["layers"]}
    assert (states["conv1"], states["bn1"], states["relu1"], states["fc"]) == ("int8", "fused", "fused", "int8")
    assert plain["macs"] == 64 * 16 * 27 + 64 * 16 * 144 + 16 * 16 * 9 + 4 * 16
    assert plain["bytes"] == trained().parameter_bytes()
    assert plain["inputs"] == {"x": "float32[N, 3, 8, 8]"}


def test_inspect_shows_parameters_and_origin_of_a_quantized_model(cli, quantized):
    done = cli("inspect", "quant.npz")
    assert "int8, backend fbgemm" in done.out
    assert "calibrated on 32 samples of data.npz" in done.out
    layers = {layer["name"]: layer for layer in cli("inspect", "quant.npz", "--json").json["layers"]}
    graph = load(quantized / "quant.npz")
    assert layers["conv1"]["precision"] == "int8"
    out = next(node for node in graph.nodes if node.name == "conv1").outputs[0]
    assert layers["conv1"]["scale"] == float(graph.values[out].qparams.scale[0])


def test_inspect_names_the_reason_for_float(cli, tmp_path):
    b = package.ops.Builder("odd")
    y = b.node("gelu", [b.input("x", ("N", 4))], name="act")
    save(b.finish([b.node("softmax", [y], name="probabilities", dim=1)]), tmp_path / "odd.npz")
    assert "float32" in cli("inspect", "odd.npz").out


def test_zoo_lists_and_builds(cli, tmp_path):
    assert all(name in cli("zoo").out for name in ZOO_NAMES)
    assert set(cli("zoo", "--json").json["models"]) == set(ZOO_NAMES)
    plain = cli("zoo", "mobilenet_v2", "--image", "32", "--classes", "3", "--seed", "5", "-o", "m.npz", "--json").json
    assert plain["bytes"] == (tmp_path / "m.npz").stat().st_size
    assert load(tmp_path / "m.npz").values["x"].shape == ("N", 3, 32, 32)
    done = cli("inspect", "m.npz")
    assert "features.0.0" in done.out


def test_recipe_init_writes_one_that_quantizes(cli, tmp_path):
    workspace(tmp_path)
    words = ("recipe", "init", "--model", "float.npz", "--data", "data.npz", "--result", "mine.npz")
    done = cli(*words, "-o", "mine.yaml")
    assert done.code == 0
    assert cli(*words).out == (tmp_path / "mine.yaml").read_text()
    assert "is good: 6 of 6 layers would be quantized" in cli("recipe", "check", "mine.yaml").out
    assert not (tmp_path / "mine.npz").exists()
    done = cli("quantize", "-r", "mine.yaml", "--set", "gates=null", "--set", "latency=null")
    assert done.code == 0
    assert cli(*words, "-o", "mine.yaml").code == 2  # what is there is not overwritten


def test_recipe_check_shows_rules_and_data(cli, tmp_path):
    workspace(tmp_path, RECIPE + 'qconfig_dict: {"": fbgemm, block: null, "type:linear": default}\n')
    plain = cli("recipe", "check", "recipe.yaml", "--json").json
    assert plain["schema"] == "qtool.recipe-check/1"
    assert plain["samples"] == {"calibration": 32, "evaluation": 32}
    assert {row["key"]: row["matched"] for row in plain["rules"]} == {"": 7, "block": 4, "type:linear": 1}
    assert {row["layer"] for row in plain["fallbacks"]} == {"block.conv2", "block.add"}
    done = cli("recipe", "check", "recipe.yaml")
    assert "the rule 'block' leaves it in float" in done.out
    assert "calibration: 32 samples of data.npz" in done.out


def test_recipe_schema_and_presets(cli):
    schema = json.loads(cli("recipe", "schema").out)
    assert schema["properties"]["backend"]
    presets = cli("recipe", "presets", "--json").json["presets"]
    assert presets["fbgemm"]["qconfig"]["activation"]["reduce_range"] is True
    assert "accurate" in cli("recipe", "presets").out
    assert "get_default_qconfig('fbgemm')" in cli("recipe", "presets", "-v").out


def test_doctor(cli):
    plain = cli("doctor", "--json").json
    assert plain["schema"] == "qtool.doctor/1"
    assert plain["instruction_sets"] == list(native.supported_isas())
    explained = {note.partition(":")[0] for note in plain["instruction_set_notes"]}
    assert explained >= set(native.abi.ISAS) - set(native.supported_isas())
    assert any(text.startswith("numpy ") for text in plain["packages"])
    assert len(plain["kernels"]) == (len(native.kernels()) if native.available() else 0)
    assert "engine" in cli("doctor").out
    if native.available():
        assert native.kernels()[0].name in cli("doctor", "-v").out


def test_doctor_measures_the_machine_when_it_is_asked(cli, monkeypatch):
    def made_up(threads: int) -> Ceilings:
        return Ceilings(threads, {"scalar": 3.5}, {"scalar": 2.5}, {"L1": 99.5 * threads}, {"L1": 16384})

    monkeypatch.setattr("qtool.analysis.ceilings.measure_ceilings", made_up)
    plain = cli("doctor", "--ceilings", "--threads", "3", "--json").json["ceilings"]
    assert plain == [made_up(1).to_json(), made_up(3).to_json()]
    shown = cli("doctor", "--ceilings", "--threads", "3").out
    assert all(text in shown for text in ("int8 scalar", "3.5", "read L1 (16.4 kB)", "99.5", "298.5", "3 threads"))
    assert "ceilings" not in cli("doctor", "--json").json

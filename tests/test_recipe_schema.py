"""The JSON schema of recipes, and the template."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from recipe_cases import FULL, SMALL, WRONG_BY_SCHEMA, rules_of

from qtool.recipe.document import RECIPE
from qtool.recipe.jsonschema import recipe_schema
from qtool.recipe.load import load_recipe
from qtool.recipe.presets import (
    get_preset,
)
from qtool.recipe.schema import (
    Backend,
    DataConfig,
    Gates,
    LatencyConfig,
)
from qtool.recipe.template import recipe_template


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

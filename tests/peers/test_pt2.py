"""Exported programs in .pt2 files: read, and refused where they hold more than a network."""

from __future__ import annotations

import io
import json
import warnings
import zipfile

import pytest

import qtool
from qtool.errors import ModelError
from qtool.pipeline import load_model

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch_graphs import (  # noqa: E402
    assert_agree,
    draw,
    with_zoo_weights,
)

pytestmark = pytest.mark.peers


def saved(module, example, path, dynamic=None, decomposed=False):
    program = torch.export.export(module.eval(), example, dynamic_shapes=dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


@pytest.mark.parametrize("decomposed", [False, True])
def test_pt2_files(tmp_path, decomposed):
    _, module = with_zoo_weights("resnet18")
    x = draw(2, 3, 64, 64)
    path = saved(module, (x,), tmp_path / "net.pt2", ({0: torch.export.Dim("batch")},), decomposed)
    graph = load_model(path)
    assert_agree(graph, module, draw(3, 3, 64, 64, seed=1))
    direct = qtool.from_torch(module, [x])
    layers = ("conv2d", "batch_norm", "linear")
    assert [(n.name, n.inputs) for n in graph.nodes if n.op in layers[:2]] == [
        (n.name, n.inputs) for n in direct.nodes if n.op in layers[:2]
    ]
    assert graph.producers["fc"].inputs[1:] == ("fc.weight", "fc.bias")


def test_pt2_files_with_two_open_sizes(tmp_path):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    module = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    graph = load_model(saved(module, (draw(3, 5, 16),), tmp_path / "net.pt2", (dims,)))
    batch, tokens, width = graph.values[graph.inputs[0]].shape
    assert (batch, width) == ("N", 16)
    assert isinstance(tokens, str)
    assert graph.values[graph.outputs[0]].shape == (batch, tokens, width)
    for sizes in ((1, 7), (4, 2)):
        assert_agree(graph, module, draw(*sizes, 16))


def rewritten(path, change):
    """The archive with the text of its program, or with members, changed."""
    result = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w") as new:
        for info in old.infolist():
            change(new, info.filename, old.read(info))
    path.write_bytes(result.getvalue())
    return path


HARMFUL = [
    "__import__('os').system('true')",
    "exec(input())",
    "().__class__",
    "s0.x",
    "[1 for a in s0]",
    "Symbol('a b')",
]


@pytest.mark.parametrize("text", HARMFUL)
def test_pt2_files_that_would_have_code_evaluated_are_refused(tmp_path, text):
    path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2", ({0: torch.export.Dim("batch")},))
    found = []

    def change(new, name, data):
        if name.endswith("models/model.json"):
            program = json.loads(data)
            spoil(program, found)
            data = json.dumps(program)
        new.writestr(name, data)

    def spoil(item, found):
        for value in item.values() if isinstance(item, dict) else item:
            if isinstance(value, dict) and "expr_str" in value:
                found.append(value["expr_str"])
                value["expr_str"] = text
            elif isinstance(value, (dict, list)):
                spoil(value, found)

    with pytest.raises(ModelError, match="expected arithmetic on sizes"):
        load_model(rewritten(path, change))
    assert found


def with_members(more):
    def change(new, name, data):
        new.writestr(name, more.pop(name.split("/", 1)[1], data))
        if name.endswith("/version"):
            for extra in [extra for extra in more if extra.startswith("+")]:
                new.writestr(f"{name.split('/')[0]}/{extra[1:]}", more.pop(extra))

    return change


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_pt2_files_with_more_than_tensors_are_refused(tmp_path, capsys):
    evil = io.BytesIO()
    torch.save({"x": Evil()}, evil)
    cases = {
        "data/sample_inputs/model.pt": (evil.getvalue(), "holds more than tensors"),
        "+data/aotinductor/model/a.so": (b"", "compiled code"),
        "+data/constants/custom_obj_0": (b"", "no tensor"),
        "models/model.json": (b"{}", "no exported program"),
    }
    for name, (data, message) in cases.items():
        path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2")
        with pytest.raises(ModelError, match=message):
            load_model(rewritten(path, with_members({name: data})))
    assert "unpickled" not in capsys.readouterr().out


def test_pt2_files_that_call_other_functions_are_refused(tmp_path):
    path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2")

    def change(new, name, data):
        new.writestr(name, data.replace(b"torch.ops.aten.linear.default", b"torch.os.system"))

    with pytest.raises(ModelError, match=r"it calls 'torch\.os\.system'"):
        load_model(rewritten(path, change))


@pytest.mark.parametrize("word", ["default_factory_module", "default\\\\u005ffactory_module", "__enum__"])
def test_pt2_files_that_would_have_modules_imported_are_refused(tmp_path, word):
    path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2")

    def change(new, name, data):
        changed = data.replace(b'"in_spec": "', b'"in_spec": "' + word.encode())
        assert (changed != data) == name.endswith("models/model.json")
        new.writestr(name, changed)

    with pytest.raises(ModelError, match="more than tuples, lists and dicts"):
        load_model(rewritten(path, change))


def test_broken_pt2_files(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(ModelError, match=r"net\.pt2"):
        load_model(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"cannot be read as a \.pt2 archive"):
        load_model(path)


def test_gradient_switches_in_files_are_passed_over(tmp_path):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                x = self.first(x).relu()
            return self.second(x)

    module = Frozen().eval()
    dims = ({0: torch.export.Dim("batch")},)
    graph = load_model(saved(module, (draw(2, 4),), tmp_path / "net.pt2", dims))
    assert [node.scope for node in graph.nodes] == ["first", "", "second"]
    assert_agree(graph, module, draw(5, 4))

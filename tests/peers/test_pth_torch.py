"""Files that torch.save writes, read without torch."""

from __future__ import annotations

import numpy as np
import pytest

from qtool.errors import ModelError
from qtool.frontends import read_state_dict

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.peers


def test_every_way_torch_stores_numbers(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7
    dtypes = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    state = {name: (base * 5).to(getattr(torch, name)) for name in dtypes}
    state |= {"transposed": base.permute(2, 0, 1), "slice": base[1, 1:, ::2], "scalar": torch.tensor(2.5)}
    state |= {"empty": torch.zeros(0, 3), "parameter": nn.Parameter(base[0]), "one": base[:1]}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        read = read_state_dict(path)
        assert list(read) == list(state)
        for key, tensor in state.items():
            half = tensor.dtype in (torch.float16, torch.bfloat16)
            expected = (tensor.float() if half else tensor).detach().numpy()
            assert read[key].dtype == expected.dtype
            np.testing.assert_array_equal(read[key], expected)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_checkpoints_of_training_scripts(key, tmp_path):
    layer = nn.DataParallel(nn.Linear(3, 2))
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 90, "best": 0.917, key: layer.state_dict(), "optimizer": optimizer.state_dict()}, path)
    read = read_state_dict(path)
    assert sorted(read) == ["bias", "weight"]
    np.testing.assert_array_equal(read["weight"], layer.module.weight.detach().numpy())


def test_whole_modules_and_programs_are_refused(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(nn.Linear(3, 2), path)
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear.*refused"):
        read_state_dict(path)
    torch.save({"weight": torch.ones(2).expand(1000, 2)}, path)
    with pytest.raises(ModelError, match="does not fit its storage"):
        read_state_dict(path)

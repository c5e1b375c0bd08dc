"""What the tests of PyTorch modules as graphs share; needs torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch_nets import TORCH

import qtool
from qtool import zoo
from qtool.engine import reference
from qtool.zoo.weights import parameters

torch.set_num_threads(1)

X = (2, 3, 4)
"""The shape that most functions are tried on."""
SMALL_IMAGE = {"resnet18": 64, "resnet50": 64, "mobilenet_v2": 64, "googlenet": 70, "inception_v3": 107}


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def leaves(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if leaf is not None]


def feeds_of(graph, inputs):
    return dict(zip(graph.inputs, (tensor.numpy() for tensor in leaves(inputs)), strict=True))


def assert_agree(graph, module, *inputs, session=True):
    """Both engines against the module, to 1e-4 of each output's largest number; types and shapes exactly."""
    with torch.inference_mode():
        expected = [leaf.numpy() for leaf in leaves(module(*inputs))]
    feeds = feeds_of(graph, inputs)
    results = [reference.run(graph, feeds)]
    if session:
        results.append(qtool.Session(graph).run(feeds))
    for result in results:
        for ours, theirs in zip(result.values(), expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            if theirs.dtype.kind != "f":
                np.testing.assert_array_equal(ours, theirs)
            else:
                largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * largest)


def converted(module, *inputs, **more):
    module.eval()
    graph = qtool.from_torch(module, inputs, **more)
    assert_agree(graph, module, *inputs)
    return graph


def with_zoo_weights(name, seed=1, **more):
    graph = zoo.build(name, seed=seed, image=SMALL_IMAGE[name], transform=more.get("transform_input", False))
    module = TORCH[name](**more).eval()
    state = {key: torch.from_numpy(array.copy()) for key, array in parameters(graph).items()}
    module.load_state_dict(state, strict=False)
    return graph, module


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(draw(4, 6, seed=7))
        self.register_buffer("mask", torch.ones(5, 5).tril() == 0)

    def forward(self, *inputs):
        return self.function(self, *inputs)

"""Runs a recipe of mode qat in PyTorch's FX mode, on the same model, batches, rates and epochs.

    python tests/peers/qat_fx.py tests/recipes/resnet20_qat.yaml --set model.weights=... --threads 2

Tells the top-1 of the float model, of the one with fake quantization and of the converted one. The qconfig is
PyTorch's default for the backend; of the recipe's own only limits of the weight (4 bits) are taken over.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import qat as intrinsic
from torch.ao.quantization import quantize_fx
from torch.nn import functional as F

from qtool.analysis.peers.torch_module import module_of
from qtool.ir import Graph
from qtool.passes import clean
from qtool.pipeline import load_model
from qtool.quantize.data import Dataset, open_data
from qtool.quantize.qat.batches import open_batches
from qtool.quantize.qat.schedules import Rates
from qtool.recipe.load import load_recipe
from qtool.recipe.schema import Recipe, TrainConfig
from qtool.recipe.training import Distance, Loss, Optimizer

Run = Callable[[Tensor], Tensor]
log = logging.getLogger("qat_fx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe, options.set)
    graph = clean(load_model(recipe.model))
    assert recipe.evaluation is not None
    evaluation = open_data(recipe.evaluation, graph)
    teacher = module_of(graph)
    log.info("float %.2f %%", 100 * top1(teacher, evaluation))
    trained = train(recipe, graph, teacher)
    log.info("fake quantized %.2f %%", 100 * top1(trained, evaluation))
    log.info("int8 %.2f %%", 100 * top1(mended(quantize_fx.convert_fx(trained)), evaluation))


def train(recipe: Recipe, graph: Graph, teacher: Run) -> nn.Module:
    """The prepared module after all epochs, in evaluation mode."""
    config = recipe.train
    assert config is not None
    module = prepared(recipe, graph)
    optimizer = optimizer_of(config, module)
    with open_batches(config, graph) as data:
        rates = Rates(config.schedule, config.optimizer.rate, config.epochs, data.steps_per_epoch)
        for epoch in range(config.epochs):
            freeze(module, config, epoch)
            total = 0.0
            for number, (feeds, labels) in enumerate(data.epoch(epoch)):
                x = torch.from_numpy(np.ascontiguousarray(feeds[graph.inputs[0]]))
                loss = loss_of(config, module(x), x, labels, teacher)
                for group in optimizer.param_groups:
                    group["lr"] = rates.at(epoch * data.steps_per_epoch + number)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            log.info("epoch %d: loss %.4f", epoch + 1, total / data.steps_per_epoch)
    return module.eval()


def prepared(recipe: Recipe, graph: Graph) -> nn.Module:
    backend = recipe.backend.value
    torch.backends.quantized.engine = backend
    qconfig = tq.get_default_qat_qconfig(backend, version=0)
    weight = recipe.rules[0].qconfig.weight if recipe.rules[0].qconfig else None
    if weight is not None and weight.quant_max is not None and weight.quant_max < 127:
        limits = {"quant_min": weight.quant_min, "quant_max": weight.quant_max}
        qconfig = tq.QConfig(activation=qconfig.activation, weight=qconfig.weight.with_args(**limits))
    mapping = tq.QConfigMapping().set_global(qconfig)
    x = torch.zeros(1, *[size if isinstance(size, int) else 32 for size in graph.values[graph.inputs[0]].shape[1:]])
    return quantize_fx.prepare_qat_fx(module_of(graph).train(), mapping, (x,))


def freeze(module: nn.Module, config: TrainConfig, epoch: int) -> None:
    if config.freeze_bn_epoch is not None and epoch >= config.freeze_bn_epoch:
        module.apply(intrinsic.freeze_bn_stats)
    if config.freeze_observer_epoch is not None and epoch >= max(config.freeze_observer_epoch, 1):
        module.apply(tq.disable_observer)


def mended(converted: nn.Module) -> nn.Module:
    """The same with relu6 on contiguous pictures: of those in channels-last order, as QNNPACK's convolutions give them,
    torch 2.13 returns the right numbers in the wrong places (``test_relu6_of_qnnpack_is_permuted``)."""
    for part in converted.modules():
        if isinstance(part, nn.ReLU6 | nnq.ReLU6):
            part.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return converted


def optimizer_of(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    chosen = config.optimizer
    if chosen.name is Optimizer.SGD:
        return torch.optim.SGD(
            module.parameters(),
            chosen.rate,
            chosen.momentum,
            nesterov=chosen.nesterov,
            weight_decay=chosen.weight_decay,
        )
    made = torch.optim.Adam if chosen.name is Optimizer.ADAM else torch.optim.AdamW
    return made(module.parameters(), chosen.rate, chosen.betas, weight_decay=chosen.weight_decay)


def loss_of(config: TrainConfig, output: Tensor, x: Tensor, labels: np.ndarray | None, teacher: Run) -> Tensor:
    loss = config.loss
    if loss.name is Loss.CROSS_ENTROPY:
        return F.cross_entropy(output, torch.from_numpy(labels), label_smoothing=loss.label_smoothing)
    with torch.no_grad():
        target = teacher(x)
    if loss.distance is Distance.MSE:
        return F.mse_loss(output, target)
    ours, theirs = (F.log_softmax(each / loss.temperature, -1) for each in (output, target))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * loss.temperature**2


def top1(run: Run, data: Dataset) -> float:
    right = 0
    with torch.no_grad():
        for feeds, labels in data.batches():
            output = run(torch.from_numpy(np.ascontiguousarray(next(iter(feeds.values())))))
            right += int((output.numpy().argmax(-1) == labels).sum())
    return right / data.samples


if __name__ == "__main__":
    main()

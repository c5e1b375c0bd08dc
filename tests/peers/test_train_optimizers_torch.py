"""Optimizers and learning rates equal PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qtool.quantize.qat.optimizers import make_optimizer  # noqa: E402
from qtool.quantize.qat.schedules import Rates  # noqa: E402
from qtool.recipe.training import Optimizer, OptimizerConfig, Schedule, ScheduleConfig  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

SHAPES = {"conv": (8, 3, 3, 3), "norm": (8,), "fc": (5, 37), "scale": ()}
STEPS = 20
CONFIGS = [
    OptimizerConfig(momentum=momentum, nesterov=nesterov, weight_decay=decay)
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
    for decay in (0.0, 0.01)
] + [
    OptimizerConfig(name, betas=betas, weight_decay=decay)
    for name in (Optimizer.ADAM, Optimizer.ADAMW)
    for betas in ((0.9, 0.999), (0.3, 0.5))
    for decay in (0.0, 0.01)
]


def torch_optimizer(config: OptimizerConfig, parameters):
    common = {"lr": config.rate, "weight_decay": config.weight_decay, "foreach": False}
    if config.name is Optimizer.SGD:
        return torch.optim.SGD(parameters, momentum=config.momentum, nesterov=config.nesterov, **common)
    made = torch.optim.Adam if config.name is Optimizer.ADAM else torch.optim.AdamW
    return made(parameters, betas=config.betas, eps=config.eps, **common)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameters_stay_those_of_torch(config) -> None:
    rng = np.random.default_rng(0)
    ours = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in ours.items()}
    optimizer, other = make_optimizer(config), torch_optimizer(config, list(theirs.values()))
    for step in range(STEPS):
        rate = 0.05 / (1 + step)
        grads = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        if step == 0:
            del grads["fc"]  # its first gradient comes later, and its averages begin then
        optimizer.step(ours, grads, rate)
        for group in other.param_groups:
            group["lr"] = rate
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name]) if name in grads else None
        other.step()
    for name, array in ours.items():
        # Torch fuses the products and sums of a step: an ulp of the sum, and of each average, a step. The parameters
        # and gradients are of size 1; Adam divides by the root of an average, which halves its relative error.
        expected = theirs[name].detach().numpy()
        np.testing.assert_allclose(array, expected, rtol=0, atol=STEPS * 2.0**-24 * 4, err_msg=name)


def torch_rates(make, epochs, steps_per_epoch, per_batch):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    scheduler = make(optimizer)
    found = []
    for _ in range(epochs):
        for _ in range(steps_per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per_batch:
                scheduler.step()
        if not per_batch:
            scheduler.step()
    return found


def our_rates(config: ScheduleConfig, epochs, steps_per_epoch):
    rates = Rates(config, 0.8, epochs, steps_per_epoch)
    return [rates.at(step) for step in range(epochs * steps_per_epoch)]


@pytest.mark.parametrize(("step_epochs", "gamma"), [(1, 0.5), (3, 0.1), (30, 0.1)])
def test_steps_are_those_of_step_lr_stepped_every_epoch(step_epochs, gamma) -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, step_epochs, gamma), 8, 3, per_batch=False)
    found = our_rates(ScheduleConfig(Schedule.STEP, step_epochs, gamma), 8, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 7), (8, 3)])
def test_a_cosine_is_that_of_cosine_annealing_stepped_every_batch(epochs, steps) -> None:
    made = torch.optim.lr_scheduler.CosineAnnealingLR
    expected = torch_rates(lambda o: made(o, epochs * steps), epochs, steps, per_batch=True)
    # Torch goes from each rate to the next, and near the end divides by next to nothing.
    np.testing.assert_allclose(our_rates(ScheduleConfig(), epochs, steps), expected, rtol=1e-9)


@pytest.mark.parametrize("warmup", [1, 2.5])
def test_a_warm_up_is_that_of_linear_lr_before_the_cosine(warmup) -> None:
    epochs, steps = 6, 4
    count = round(warmup * steps)

    def make(optimizer):
        rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (count + 1), total_iters=count)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps - count)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [count])

    expected = torch_rates(make, epochs, steps, per_batch=True)
    np.testing.assert_allclose(our_rates(ScheduleConfig(warmup_epochs=warmup), epochs, steps), expected, rtol=1e-9)

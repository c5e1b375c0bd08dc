"""The keys of the ``train`` and ``head`` blocks."""

from __future__ import annotations

from types import MappingProxyType

from qtool.recipe.document_data import DATA
from qtool.recipe.kinds import FilePath, Flag, Key, ListOf, Real, Table, Text, Whole, one_of
from qtool.recipe.training import Distance, FakeQuant, Loss, Optimizer, Schedule

TRAIN_DATA = {
    **{key: spec for key, spec in DATA.items() if key not in ("carry", "batch_size")},
    "batch_size": Key(Whole(1, 1 << 20), "samples a step (64)"),
    "outputs": Key(ListOf(Text("the name of an output"), (1,)), "the output that the loss is of (the first)"),
}
"""Those of other data. Training has no state that is carried: its samples come in random order."""

_AUGMENT = Table(
    MappingProxyType(
        {
            "flip": Key(Flag(), "swap left and right of one image in two (false)"),
            "crop": Key(Whole(0, 1024), "pixels of zeros put around, then as many cut away (0)"),
            "rotate": Key(Real(0.0, 180.0), "degrees, at most, either way (0)"),
            "scale": Key(Real(0.0, 0.9), "share, at most, made larger or smaller by (0)"),
            "shift": Key(Real(0.0, 1024.0), "pixels, at most, along each axis, either way (0)"),
        }
    )
)

_EPOCH = Whole(0, 1 << 20)

TRAIN_ONLY = {
    "epochs": Key(Whole(1, 1 << 20), "passes over the data (8)"),
    "optimizer": Key(one_of(Optimizer), "sgd, adam or adamw, with PyTorch's formulas (sgd)"),
    "rate": Key(Real(0.0, 1e3, above=True), "learning rate before the schedule (0.01; 0.001 for adam and adamw)"),
    "momentum": Key(Real(0.0, 1.0), "for sgd (0.9)"),
    "nesterov": Key(Flag(), "Nesterov's momentum, for sgd (false)"),
    "betas": Key(ListOf(Real(0.0, 0.99999), (2,)), "decay of the two averages, for adam and adamw ([0.9, 0.999])"),
    "weight_decay": Key(Real(0.0, 10.0), "towards zero (0.0001)"),
    "decay_norms": Key(Flag(), "biases and batch norms decay too (true)"),
    "schedule": Key(one_of(Schedule), "the rate over time: constant, step or cosine (cosine)"),
    "step_epochs": Key(Whole(1, 1 << 20), "for schedule: step: every so many epochs (30) ..."),
    "gamma": Key(Real(0.0, 1.0, above=True), "... the rate times this (0.1)"),
    "warmup_epochs": Key(Real(0.0, float(1 << 20)), "epochs, or a share of one, in which the rate rises from 0 (0)"),
    "loss": Key(one_of(Loss), "cross_entropy, mse, or distillation: from the float model, without labels"),
    "label_smoothing": Key(Real(0.0, 1.0), "for cross_entropy: share spread over all classes (0)"),
    "temperature": Key(Real(0.0, 1e3, above=True), "for distillation of logits: they are divided by it (1)"),
    "distillation_loss": Key(one_of(Distance), "for distillation: kl, of logits, or mse, of any outputs (kl)"),
    "seed": Key(Whole(0, (1 << 32) - 1), "of the order of samples, the augmentation and a new head (0)"),
    "augment": Key(_AUGMENT, "random changes to images"),
    "freeze_bn_epoch": Key(_EPOCH, "batch-norm statistics are fixed from this epoch on; null: never (half of them)"),
    "freeze_observer_epoch": Key(_EPOCH, "ranges are fixed from this epoch on; null: never (half of them)"),
    "layers": Key(
        ListOf(Text("a module path, type:OP or re:REGEX")), "layers that train, by qconfig_dict's keys (all)"
    ),
    "fake_quant": Key(one_of(FakeQuant), "float, or exact: the forward pass in int8 arithmetic (float)"),
    "learn_scales": Key(Flag(), "train the scales too, as LSQ does (false)"),
    "checkpoint": Key(FilePath(), "the best and last state, to resume from (OUTPUT.ckpt.npz)"),
}

TRAIN = Table(MappingProxyType({**TRAIN_DATA, **TRAIN_ONLY}))

HEAD = Table(
    MappingProxyType(
        {
            "classes": Key(Whole(1, 1 << 24), "number of outputs of the new layer", required=True),
            "layer": Key(Text("a module path"), "the linear or 1x1 convolution it replaces (the last one)"),
        }
    )
)

"""The keys of a block of data, which several blocks of a recipe share."""

from __future__ import annotations

from types import MappingProxyType

from qtool.recipe.kinds import (
    Choice,
    Either,
    FilePath,
    Interval,
    Key,
    ListOf,
    MapOf,
    Number,
    Real,
    Table,
    Text,
    Whole,
    one_of,
)
from qtool.recipe.schema import Colour, Layout

_SIDE = Whole(1, 65536)

_NOISE = Table(
    MappingProxyType(
        {
            "sigma": Key(Real(0.0, 255.0, above=True), "its deviation, where pixels are 0..255", required=True),
            "seed": Key(Whole(0, (1 << 32) - 1), "drawn from it for every picture anew (0)"),
        }
    )
)

_PREPROCESS = Table(
    MappingProxyType(
        {
            "resize": Key(Either(_SIDE, ListOf(_SIDE, (2,))), "pixels of the short side, or [height, width]"),
            "crop": Key(_SIDE, "pixels of the square cut from the centre"),
            "colour": Key(one_of(Colour), "channels and their order: rgb, bgr or gray (rgb)"),
            "range": Key(Interval(Real(-1e6, 1e6)), "what 0 and 255 become ([0, 1])"),
            "mean": Key(ListOf(Real(-1e6, 1e6), (1, 3)), "one number, or one a channel, in that range: subtracted"),
            "std": Key(ListOf(Real(0.0, 1e6, above=True), (1, 3)), "one number, or one a channel, divided by"),
            "noise": Key(_NOISE, "Gaussian noise to be taken away: the clean picture is the target"),
            "layout": Key(one_of(Layout), "nchw, or nhwc for models that take channels last (nchw)"),
        }
    )
)

_AUDIO = Table(
    MappingProxyType(
        {
            "rate": Key(Whole(1, 1 << 24), "samples a second, as the model was trained on", required=True),
            "window": Key(Whole(1, 1 << 24), "samples of a frame", required=True),
            "hop": Key(Whole(1, 1 << 24), "samples from one frame to the next (window)"),
            "context": Key(Whole(0, 1 << 24), "samples before the window that a frame holds too (0)"),
            "features": Key(
                Choice(("waveform", "magnitude")), "the samples (waveform), or the magnitudes of their spectrum"
            ),
        }
    )
)

DATA = {
    "data": Key(FilePath(), "an .npz, .npy or .wav file, a folder of them, or a folder of images", required=True),
    "split": Key(Text("the name of a split"), "the part of the data to use"),
    "shuffle": Key(Whole(0, (1 << 32) - 1), "the seed of a random order (the order of the data)"),
    "samples": Key(
        Interval(Whole(0, 1 << 48), open_ended=True),
        "[start, stop] of the samples used, once shuffled; stop may be null",
    ),
    "batch_size": Key(Whole(1, 1 << 20), "samples a batch (32; 1 with carry)"),
    "batches": Key(Whole(1, 1 << 30), "number of batches (all)"),
    "labels": Key(FilePath(), "a .csv file with file names and classes, for a folder of images"),
    "preprocess": Key(_PREPROCESS, "how an image becomes an input"),
    "audio": Key(_AUDIO, "how sound becomes frames"),
    "carry": Key(MapOf(Text("the name of an input")), "output -> input of the next step, for a model with state"),
    "constants": Key(MapOf(Number()), "input -> its value in every step"),
}

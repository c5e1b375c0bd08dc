"""A small model that really tells four classes apart, its data, and ways to run the command line on them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qtool.engine import reference
from qtool.ir import Graph
from qtool.ir.npz import save
from qtool.ops import Builder

CLASSES = 4

RECIPE = """\
model: float.npz
output: quant.npz
mode: static
backend: fbgemm
calibration: {data: data.npz, split: calib, batch_size: 16, batches: 2}
evaluation: {data: data.npz, split: test, batch_size: 16, metric: top1}
"""


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of one picture a class: (count, 3, 8, 8) in float32, and the classes."""
    pictures = np.random.default_rng(0).standard_normal((CLASSES, 3, 8, 8))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    return (pictures[labels] + 0.3 * rng.standard_normal((count, 3, 8, 8))).astype(np.float32), labels


def _conv(b: Builder, x: str, name: str, shape: tuple[int, ...], **attrs: Any) -> str:
    rng = np.random.default_rng(abs(sum(map(ord, name))))
    with b.scope(name):
        weight = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        return b.node("conv2d", [x, b.param("weight", weight.astype(np.float32))], padding=((1, 1), (1, 1)), **attrs)


def _norm(b: Builder, x: str, name: str, channels: int) -> str:
    rng = np.random.default_rng(7)
    with b.scope(name):
        parts = {
            "running_mean": 0.1 * rng.standard_normal(channels),
            "running_var": rng.uniform(0.5, 1.5, channels),
            "weight": rng.uniform(0.5, 1.5, channels),
            "bias": 0.1 * rng.standard_normal(channels),
        }
        return b.node("batch_norm", [x, *(b.param(key, a.astype(np.float32)) for key, a in parts.items())])


def _layer(b: Builder, op: str, x: str, name: str, **attrs: Any) -> str:
    with b.scope(name):
        return b.node(op, [x], **attrs)


def _features(b: Builder) -> str:
    x = b.input("x", ("N", 3, 8, 8))
    y = _layer(b, "relu", _norm(b, _conv(b, x, "conv1", (16, 3, 3, 3)), "bn1", 16), "relu1")
    with b.scope("block"):
        z = _norm(b, _conv(b, y, "conv2", (16, 16, 3, 3)), "bn2", 16)
        z = _layer(b, "relu", b.node("add", [z, y], name="add"), "relu2")
    z = _layer(b, "relu6", _conv(b, z, "dw", (16, 1, 3, 3), groups=16, stride=(2, 2)), "relu6")
    return _layer(b, "flatten", _layer(b, "adaptive_avg_pool2d", z, "pool", output_size=(1, 1)), "flatten")


@cache
def trained() -> Graph:
    """Random features and a classifier fitted to them by least squares: right on all of its data."""
    b = Builder("cli")
    x, labels = images(256, seed=1)
    graph = b.finish([_features(b)])
    features = reference.run(graph, {"x": x})[graph.outputs[0]]
    design = np.hstack([features, np.ones((len(x), 1))])
    weight, *_ = np.linalg.lstsq(design, 4.0 * np.eye(CLASSES)[labels], rcond=None)
    b = Builder("cli")
    y = _features(b)
    with b.scope("fc"):
        rows = b.param("weight", weight[:-1].T.astype(np.float32)), b.param("bias", weight[-1].astype(np.float32))
        return b.finish([b.node("linear", [y, *rows])])


@cache
def mlp() -> Graph:
    """x -> linear -> relu -> linear, for dynamic quantization."""
    rng, b = np.random.default_rng(3), Builder("mlp")
    y = b.input("x", ("N", 12))
    for name, (out, given) in {"fc1": (24, 12), "fc2": (CLASSES, 24)}.items():
        if name == "fc2":
            y = _layer(b, "relu", y, "relu")
        with b.scope(name):
            weight = b.param("weight", rng.standard_normal((out, given)).astype(np.float32))
            y = b.node("linear", [y, weight, b.param("bias", rng.standard_normal(out).astype(np.float32))])
    return b.finish([y])


@cache
def arrays() -> dict[str, np.ndarray]:
    """The data file: splits calib and test."""
    found = {}
    for seed, split in enumerate(("calib", "test"), 2):
        found[f"{split}_x"], found[f"{split}_y"] = images(32, seed)
    return found


def workspace(folder: Path, recipe: str = RECIPE, graph: Graph | None = None, **changed: np.ndarray) -> Path:
    """A folder with float.npz, data.npz (some arrays changed) and recipe.yaml; gives the recipe's path."""
    save(graph or trained(), folder / "float.npz")
    np.savez(folder / "data.npz", **{**arrays(), **changed})
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


@dataclass(frozen=True)
class Done:
    """What a run of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("QTOOL_", "COLUMNS"))}
    # A run in another folder must find the qtool that is tested, not one that may be installed.
    import qtool

    path = [str(Path(qtool.__file__).parent.parent), kept.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


def command(*args: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "qtool", *map(str, args)]


def qtool(*args: object, cwd: Path, **options: Any) -> Done:
    """Runs the real command line in a process of its own; warnings are errors there too."""
    env = environment(**options.pop("env", {}))
    done = subprocess.run(
        command(*args), cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False, **options
    )
    return Done(done.returncode, done.stdout, done.stderr)


def qtool_here(*args: object, cwd: Path) -> Done:
    """The same in this process, which is faster: the entry point of the ``qtool`` command."""
    from qtool.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, folder = sys.argv, os.getcwd()
    sys.argv = ["qtool", *map(str, args)]
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.argv = argv
        os.chdir(folder)
    return Done(code, out.getvalue(), err.getvalue())


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

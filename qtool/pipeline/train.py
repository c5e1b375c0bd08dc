"""Training, for recipes of the modes qat and float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from qtool.analysis.evaluate import EngineOptions, against_first, measure_accuracy
from qtool.errors import RecipeError
from qtool.ir import Graph
from qtool.ir.npz import save
from qtool.pipeline.check import Checked, check_recipe
from qtool.pipeline.stages import Stage, Update
from qtool.quantize.calibrate import Calibrated
from qtool.quantize.convert import convert
from qtool.quantize.qat.agreement import Agreement, agreement
from qtool.quantize.qat.batches import TrainBatches, open_batches
from qtool.quantize.qat.convert import calibrated_of, float_graph
from qtool.quantize.qat.model import QatModel
from qtool.quantize.qat.run import Training
from qtool.quantize.qat.training import Epoch, Hooks, Judge, Progress, Teacher
from qtool.recipe.schema import Mode, Recipe, TrainConfig
from qtool.recipe.training import FakeQuant, Loss
from qtool.report.provenance import training_meta
from qtool.report.text import write_report
from qtool.report.types import Training as TrainingResult
from qtool.report.types import TrainReport


@dataclass(frozen=True)
class TrainingOptions:
    """How a training is watched: ``tell`` gets a line for each epoch; ``resume`` goes on from the checkpoint."""

    tell: Callable[[str], None] = lambda line: None  # noqa: ARG005
    resume: bool = False


@dataclass(frozen=True)
class Trained:
    """A model at the end of its training."""

    model: QatModel
    progress: Progress
    data_hash: str
    exact: bool

    @property
    def calibrated(self) -> tuple[Calibrated, str]:
        return calibrated_of(self.model, self.progress.samples), self.data_hash

    @property
    def graph(self) -> Graph:
        """The float graph with the trained parameters."""
        return float_graph(self.model)


def train_recipe(
    recipe: Recipe, stage: Stage, engine: EngineOptions = EngineOptions(), options: TrainingOptions = TrainingOptions()
) -> TrainReport:
    """Trains a float model, measures it and saves it, as a recipe of mode float says."""
    if recipe.mode is not Mode.FLOAT:
        hint = "use qtool quantize" if recipe.mode is Mode.QAT else "add a train block"
        raise RecipeError(
            f"{recipe.path}: training in float is for mode: float, and the mode is {recipe.mode.value}; {hint}"
        )
    checked = check_recipe(recipe, engine)
    trained = train(checked, recipe, stage, engine, options)
    assert trained is not None  # the mode trains
    result = None
    if checked.evaluation is not None and recipe.evaluation is not None:
        with stage("evaluate", checked.evaluation.samples) as progress:
            sessions = [engine.session(trained.graph)]
            (result,) = measure_accuracy(sessions, checked.evaluation, recipe.evaluation.metric, progress)
    graph = replace(
        trained.graph, meta={**trained.graph.meta, **training_meta(recipe, trained.data_hash, trained.progress.samples)}
    )
    save(graph, recipe.output)
    history = tuple(asdict(epoch) for epoch in trained.progress.history)
    made = TrainReport(str(recipe.model), str(recipe.output), history, trained.progress.best or 0, result)
    if recipe.report_json is not None:
        write_report(made, recipe.report_json)
    return made


def train(
    checked: Checked, recipe: Recipe, stage: Stage, engine: EngineOptions, options: TrainingOptions
) -> Trained | None:
    """The trained model; None where the recipe does not train."""
    model, config = checked.model, recipe.train
    if model is None or config is None:
        return None
    graph = model.source.float_graph
    with open_batches(config, graph) as data:
        total = config.epochs * data.samples_per_epoch
        with stage("train", total) as update:
            watch = _Watch(data.samples_per_epoch, config.epochs, update, options.tell)
            judge = None if checked.validation is None else _judge(checked, recipe, engine)
            hooks = Hooks(watch.step, watch.epoch, _teacher(checked, config, data, engine), judge)
            training = Training(model, recipe, data, checked.graph, hooks)
            if options.resume:
                options.tell(f"going on after epoch {training.resume()} of {config.epochs}")
            elif checked.calibration is not None and recipe.mode is Mode.QAT:
                training.observe(checked.calibration.feeds())
            progress = training.run()
            return Trained(model, progress, data.dataset.fingerprint(), config.fake_quant is FakeQuant.EXACT)


@dataclass
class _Watch:
    """Turns what a training tells into a progress bar and lines."""

    samples: int
    epochs: int
    update: Update
    tell: Callable[[str], None]
    done: int = 0

    def step(self, done: int, loss: float, accuracy: float | None) -> None:
        right = "" if accuracy is None else f", {accuracy:.1%} right"
        self.update(self.done * self.samples + done, f"epoch {self.done + 1}: loss {loss:.4f}{right}")

    def epoch(self, epoch: Epoch) -> None:
        self.done = epoch.number + 1
        right = "" if epoch.accuracy is None else f", {epoch.accuracy:.2%} right"
        score = "" if epoch.score is None else f", validation {epoch.score:.4g}"
        self.tell(f"epoch {self.done} of {self.epochs}: loss {epoch.loss:.4f}{right}{score}, {epoch.seconds:.1f} s")


def _teacher(checked: Checked, config: TrainConfig, data: TrainBatches, engine: EngineOptions) -> Teacher | None:
    """The float model's outputs, where they are the targets."""
    if config.loss.name is not Loss.DISTILLATION:
        return None
    session, output = engine.session(checked.graph), data.dataset.outputs[0]
    return lambda feeds: session.run(feeds)[output]


def _judge(checked: Checked, recipe: Recipe, engine: EngineOptions) -> Judge:
    """Measures the model as it would be converted now on the validation data; more is better."""
    data, config = checked.validation, recipe.validation
    assert data is not None
    assert config is not None
    first = [engine.session(checked.graph)] if against_first(data, config.metric) else []

    def score(model: QatModel) -> float:
        graph = float_graph(model) if recipe.mode is Mode.FLOAT else convert(calibrated_of(model, 0))
        result = measure_accuracy([*first, engine.session(graph)], data, config.metric)[-1]
        return result.value if result.higher_is_better else -result.value

    return score


def outcome(
    trained: Trained, quantized: Graph, checked: Checked, stage: Stage, engine: EngineOptions
) -> TrainingResult:
    """How training went, and whether the quantized model gives what the trained one gives."""
    data = checked.evaluation or checked.validation or checked.calibration
    session, history = engine.session(quantized), tuple(asdict(epoch) for epoch in trained.progress.history)
    found = Agreement(0, 0.0, 0.0, trained.exact)
    if data is not None:
        with stage("check", data.samples) as progress:
            found = agreement(trained.model, session.run, data.feeds(), exact=trained.exact, progress=progress)
    shares = (found.samples, found.outputs, found.top1, found.exact)
    return TrainingResult(history, trained.progress.best or 0, trained.progress.samples, *shares)

"""The model card of a bundle: README.md, in the format of the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..model.config import TrainConfig
from ..model.evaluate import read_metrics
from ..model.runs.layout import METRICS_NAME
from ..model.runs.run import RunConfig
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.options import flag
from .config import ExportConfig
from .onnx_runtime import ONNX_PACKAGES

TEMPLATE = "model_card.md.j2"


@dataclass(frozen=True)
class Score:
    """The scores of one evaluation.

    Attributes:
        split: such as "val".
        decoding: such as "beam5-penalty1.0".
        num_images: number of images.
        scores: metric → score as it is usually printed: times 100.
        intervals: metric → its 95 % confidence interval, likewise.
    """

    split: str
    decoding: str
    num_images: int
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def find_scores(run_dir: Path) -> list[Score]:
    """Return the scores of all finished evaluations of a run."""
    found = []
    for path in sorted(run_dir.glob(f"eval/*/{METRICS_NAME}")):
        if Manifest.read(path.parent) is None:
            continue
        metrics = read_metrics(path.parent)
        split, _, decoding = path.parent.name.partition("-")
        names = [name for name in metrics if name[0].isupper()]
        found.append(
            Score(
                split,
                decoding,
                metrics["num_images"],
                {name: 100 * metrics[name] for name in names},
                {n: tuple(100 * bound for bound in metrics["intervals"][n]) for n in names},
            )
        )
    return found


def model_card(name: str, run: RunConfig, scores: list[Score], config: ExportConfig) -> str:
    """Return the text of the model card.

    Args:
        name: of the bundle.
        run: config of the run, without paths of this machine.
        scores: of its evaluations, see `find_scores`.
        config: the options of the export.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        name=name,
        run=run,
        options=changed_options(run),
        scores=scores,
        metrics=list(dict.fromkeys(metric for score in scores for metric in score.scores)),
        config=config,
        packages=" ".join(ONNX_PACKAGES),
    )


def changed_options(run: RunConfig) -> dict[str, str]:
    """Return the training options that differ from their defaults, as users type them."""
    defaults = TrainConfig().as_json()
    changed = {n: v for n, v in run.train.items() if n in defaults and v != defaults[n]}
    return {flag(name): str(value) for name, value in sorted(changed.items())}

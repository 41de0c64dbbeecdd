"""The command line: options → config → one stage function.

Stages are imported inside their commands, so that `showtell --help` loads no torch. The options of
a command are the fields of its stage's config: names, types, defaults and help come from there.
"""

import atexit
import dataclasses
import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from .bench.config import BenchConfig
from .features.config import FeaturesConfig
from .model.config import CompareConfig, EvalConfig, TrainConfig
from .model.presets import DECODING_PRESETS, TRAIN_PRESETS, apply_preset
from .pipeline.config import DownloadConfig, PrepareConfig
from .pipeline.stage.console import print_error
from .pipeline.stage.errors import ShowTellError
from .pipeline.stage.options import StageConfig, options_of, spec_of
from .serving.config import CaptionConfig

Config = TypeVar("Config", bound=StageConfig)

app = typer.Typer(
    help="Image captioning on features that are computed once: prepare, features, train, eval.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def command(
    config_class: type[Config], name: str
) -> Callable[[Callable[[Config], None]], Callable[[Config], None]]:
    """Register a function of a config as a command with one option for each of its fields."""

    def register(stage: Callable[[Config], None]) -> Callable[[Config], None]:
        def run(context: typer.Context, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in values}
            given = tuple(
                name for name, source in sources.items() if source and source.name != "DEFAULT"
            )
            trains = issubclass(config_class, TrainConfig)
            if values.get("preset") is not None:
                presets = TRAIN_PRESETS if trains else DECODING_PRESETS
                values = apply_preset(presets, values["preset"], values, given)
            if trains:
                values["given"] = given
            with _interruptible():
                stage(config_class(**values))

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
        parameters += [_option_of(field) for field in options_of(config_class)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = stage.__doc__
        app.command(name)(run)
        return stage

    return register


def _option_of(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    """Turn a config field into a Typer option or argument; the field keeps the default."""
    spec = spec_of(field)
    if spec.positional:
        missing = field.default is dataclasses.MISSING
        return inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if missing else field.default,
            annotation=Annotated[field.type, typer.Argument(help=spec.help, metavar=spec.metavar)],
        )
    metavar = f"[{'|'.join(spec.choices)}]" if spec.choices else spec.metavar
    info = typer.Option(help=spec.help, envvar=spec.envvar, metavar=metavar)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[field.type, info],
    )


@command(DownloadConfig, "download")
def download(config: DownloadConfig) -> None:
    """Fetch a dataset's archives, resumed and verified (or draw the embedded one: scenes)."""
    from .pipeline.download import download

    download(config)


@command(PrepareConfig, "prepare")
def prepare(config: PrepareConfig) -> None:
    """Tokenize captions and count the vocabulary."""
    from .pipeline.prepare import prepare

    prepare(config)


@command(FeaturesConfig, "features")
def features(config: FeaturesConfig) -> None:
    """Run the frozen network over every image, once, and cache what it sees."""
    from .features.extract import extract

    extract(config)


@command(TrainConfig, "train")
def train(config: TrainConfig) -> None:
    """Train a decoder on cached features."""
    from .model.train import train

    train(config)


@command(EvalConfig, "eval")
def evaluate(config: EvalConfig) -> None:
    """Caption a split with a run or several, and score it with the official scorers."""
    from .model.evaluate import evaluate

    evaluate(config)


@command(CompareConfig, "compare")
def compare(config: CompareConfig) -> None:
    """Tell whether two evaluations of the same images differ by more than chance."""
    from .model.compare import compare

    compare(config)


@command(CaptionConfig, "caption")
def caption(config: CaptionConfig) -> None:
    """Caption photographs: one line each, the path and the caption."""
    from .model.runs.run import choose_run
    from .serving.captioner import caption_files, load

    run = config.run or choose_run(config.data, None).name
    captioner = load(run, data=config.data, weights=config.weights, device=config.device)
    if caption_files(captioner, config.images, config):
        raise typer.Exit(1)


@command(BenchConfig, "bench")
def bench(config: BenchConfig) -> None:
    """Measure how fast each stage is, beside what the machine allows."""
    from .bench.run import bench

    bench(config)


@app.command("status")
def status(
    data: Annotated[Path, typer.Option(help="Folder to look at.", envvar="SHOWTELL_DATA")] = Path(
        "data"
    ),
) -> None:
    """Show each stage: done, running, stopped, stale or missing, with counts, time and size."""
    from .model.runs.status import show_status

    show_status(data)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Answer Ctrl-C with one line and exit status 130; Typer itself would say nothing."""
    try:
        yield
    except KeyboardInterrupt:
        print_error("stopped. Run the same command again: finished work is kept.")
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line; a `ShowTellError` becomes one red line and its exit status."""
    # Imports make a third of a million objects that can hold others, and none is garbage: to look
    # through them for some takes 0.5 s by default, and at the end 0.8 s once more.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    try:
        app(prog_name="showtell")
    except ShowTellError as error:
        print_error(str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        # A path of the user's that cannot be used; without a path it may be a bug of ours.
        if error.filename is None:
            raise
        print_error(f"{error.filename}: {error.strerror}.")
        sys.exit(1)

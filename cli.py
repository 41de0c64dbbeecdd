"""The command line: options → config → one stage function.

The options of a command are the fields of its config. Stages are imported inside their commands,
so that `showtell --help` loads no torch.
"""

import atexit
import gc
from functools import partial
from typing import Annotated

import typer

from .bench.config import BenchConfig
from .cli_command import Group, config_command
from .features.config import FeaturesConfig
from .model.config import EvalConfig, TrainConfig
from .model.retrieval.config import NeighboursConfig
from .model.runs.config import RunsConfig, StatusConfig, VerifyConfig
from .model.scoring.config import CompareConfig, ScoreConfig
from .model.sweeps.config import SweepConfig
from .pipeline.config import DownloadConfig, PrepareConfig
from .pipeline.stage.console import find_lost_output, print_error, print_json, protect_output
from .pipeline.stage.errors import DISK_ERRORS, ShowTellError
from .pipeline.stage.signals import run_stoppable
from .serving.config import (
    CaptionConfig,
    ExportConfig,
    PullConfig,
    PushConfig,
    ReportConfig,
)
from .serving.server.config import ServeConfig

EPILOG = """
Exit codes:
  0    success
  1    error, including option values that are out of range
  2    wrong usage: unknown option, missing argument, or text for a number
  3    pretrained weights cannot be downloaded from torchvision's hub
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

Examples:
  showtell prepare --dataset flickr8k --source path/to/flickr8k
  showtell features --dataset flickr8k
  showtell train --dataset flickr8k --run gru
  showtell eval --run gru --beam 5
  showtell caption photo.jpg --run gru
"""

app = typer.Typer(
    cls=Group,
    help="Image captioning on cached features: prepare, features, train, eval, caption.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
stage = partial(config_command, app, panel="Stages")
tool = partial(config_command, app, panel="Tools")


@stage("download", DownloadConfig, examples=("--dataset coco2014", "--dataset scenes"))
def download(config: DownloadConfig) -> None:
    """Download a dataset, or draw the built-in one, scenes."""
    from .pipeline.download import download

    print_json(download(config))


@stage(
    "prepare",
    PrepareConfig,
    examples=(
        "--dataset flickr8k --source path/to/flickr8k",
        "--dataset holidays --table photos/captions.csv --min-count 1",
        "--dataset karpathy --karpathy dataset_coco.json --source data/coco2014/raw",
    ),
)
def prepare(config: PrepareConfig) -> None:
    """Tokenize the captions of a dataset and build its vocabulary."""
    from .pipeline.prepare import prepare

    print_json(prepare(config))


@stage(
    "features",
    FeaturesConfig,
    examples=(
        "--dataset flickr8k",
        "--dataset flickr8k --weights caffe --views 4 --grid",
        "--dataset coco2014 --engine ray --address auto",
    ),
)
def features(config: FeaturesConfig) -> None:
    """Compute the features of every image once, and cache them."""
    from .features.extract import extract

    print_json(extract(config))


@stage(
    "neighbours",
    NeighboursConfig,
    examples=("--dataset flickr8k", "--dataset flickr8k --neighbours 300"),
)
def neighbours(config: NeighboursConfig) -> None:
    """Find which words people use of similar training images, for 'train --neighbours'."""
    from .model.neighbours import find_neighbours

    print_json(find_neighbours(config))


@stage(
    "train",
    TrainConfig,
    examples=(
        "--dataset flickr8k --run gru",
        "--dataset flickr8k --run gru --resume",
        "--dataset flickr8k --run soft --preset soft-attention",
        "--run scst --preset self-critical --init soft",
        "--config run.toml --seed 1",
    ),
)
def train(config: TrainConfig) -> None:
    """Train a decoder on cached features."""
    from .model.train import train

    print_json(train(config))


@stage(
    "eval",
    EvalConfig,
    examples=("--run gru --beam 5", "--run soft --preset consensus", "--run a --run b --json"),
)
def evaluate(config: EvalConfig) -> None:
    """Caption a split with one run or several, and score the captions."""
    from .model.evaluate import evaluate

    manifest = evaluate(config)
    if config.report:
        from .serving.report.report import write_report

        name = f"{manifest.config['run']}/{manifest.config['split']}-{config.decoding_name}"
        write_report(ReportConfig(data=config.data, evaluation=name, device=config.device))


@tool(
    "caption",
    CaptionConfig,
    examples=(
        "photo.jpg --run gru",
        "photos/ --beam 5 --n-best 3 --json",
        "photos/ --output captions.csv",
        "photos/ --sidecar .txt --if-exists overwrite",
    ),
)
def caption(config: CaptionConfig) -> None:
    """Caption images: print one line each, or write a table or a text file per image.

    With --output or --sidecar, a run that was stopped continues when you repeat the command.
    """
    from .serving.caption import caption

    if caption(config):
        raise typer.Exit(1)


@tool(
    "export",
    ExportConfig,
    examples=("gru bundle", "soft bundle --half --consensus"),
)
def export(config: ExportConfig) -> None:
    """Write a bundle: one folder with everything that captioning needs except the encoder.

    Caption with 'showtell caption --model OUT' on any machine. The encoder's weights are downloaded
    when they are first used.
    """
    from .serving.export import export

    print_json(export(config))


@tool(
    "serve",
    ServeConfig,
    examples=("", "gru --port 8080", "bundle --preset consensus --max-batch 8"),
)
def serve(config: ServeConfig) -> None:
    """Serve a web page and an HTTP API that caption images.

    Needs the extra serve: pip install 'showtell[serve]'. Stops on Ctrl-C and SIGTERM, after it has
    answered the requests that it has accepted.
    """
    from .serving.server.serve import serve

    serve(config)


@tool(
    "report",
    ReportConfig,
    examples=("gru", "gru/test-beam5 --against soft", "gru --output report.md"),
)
def report(config: ReportConfig) -> None:
    """Write a report about an evaluation: scores, curves, and all images with their captions."""
    from .serving.report.report import write_report

    print_json({"path": write_report(config)})


@tool(
    "push",
    PushConfig,
    examples=("bundle user/flickr8k-gru", "bundle user/flickr8k-gru --private"),
)
def push(config: PushConfig) -> None:
    """Upload a bundle to the Hugging Face Hub.

    Log in with 'hf auth login' first, or set HF_TOKEN. It needs pip install 'showtell[hub]'.
    """
    from .serving.hub import push

    print_json(push(config))


@tool(
    "pull",
    PullConfig,
    examples=("user/flickr8k-gru", "user/flickr8k-gru bundle --revision v2"),
)
def pull(config: PullConfig) -> None:
    """Download a bundle from the Hugging Face Hub, and verify it.

    It needs pip install 'showtell[hub]'. Without a copy of your own, caption with
    'showtell caption IMAGE --model hf:USER/NAME'.
    """
    from .serving.hub import pull

    print_json(pull(config))


@tool("compare", CompareConfig, examples=("gru soft", "gru/val-beam3 gru/val-beam5"))
def compare(config: CompareConfig) -> None:
    """Test whether two evaluations of the same images differ significantly."""
    from .model.compare import compare

    compare(config)


@tool(
    "score",
    ScoreConfig,
    examples=(
        "results.json captions_val2014.json",
        "captions.csv references.csv --per-image scores.parquet",
        "candidates.txt references0.txt references1.txt --json",
        "a.json references.json --compare b.json",
    ),
)
def score(config: ScoreConfig) -> None:
    """Score captions of any program against references, as pycocoevalcap does.

    Formats: COCO's JSON files, {id: caption} or {id: [captions]} in JSON,
    JSON Lines, CSV, Parquet, or plain text with one caption a line.
    Images are matched by id, by file name or by line.
    Only SPICE needs Java.
    """
    from .model.score import score_files

    score_files(config)


@tool(
    "bench",
    BenchConfig,
    examples=("", "train decode --dataset flickr8k", "--coco-scale"),
)
def bench(config: BenchConfig) -> None:
    """Measure the throughput of each stage beside the hardware limit."""
    from .bench.run import bench

    bench(config)


@tool(
    "sweep", SweepConfig, examples=("sweep.toml", "sweep.toml --workers 2", "sweep.toml --dry-run")
)
def sweep(config: SweepConfig) -> None:
    """Train many runs: all combinations of options and seeds, or options chosen by a search.

    Prints the mean score of each setting and its standard deviation over the seeds. A sweep that
    was stopped continues when you repeat the command, and new values in the file add runs.
    It needs pip install 'showtell[sweep]'.
    """
    from .model.sweep import sweep

    if not sweep(config):
        raise typer.Exit(1)


@tool("runs", RunsConfig, examples=("", "'sweep-*' --sort val_CIDEr", "--csv runs.csv"))
def runs(config: RunsConfig) -> None:
    """List runs and ensembles: the options that differ, the best epoch, and all scores."""
    from .model.runs.list_runs import show_runs

    show_runs(config)


@tool("status", StatusConfig, examples=("", "--json"))
def status(config: StatusConfig) -> None:
    """Show whether each stage, run and evaluation is up to date."""
    from .model.runs.status import show_status

    show_status(config.data)


@tool("verify", VerifyConfig, examples=("", "data/runs/gru", "bundle", "data/flickr8k --json"))
def verify(config: VerifyConfig) -> None:
    """Verify every file in the data folder or in a bundle, and list the damaged ones.

    Each comes with the command that repairs it. Archives are compared with their published MD5, all
    other files and each row of the grids with their own checksums. Nothing is written. The exit
    status is 1 if a file is damaged or missing.
    """
    from .model.verify import verify

    if not verify(config):
        raise typer.Exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"showtell {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line, until it ends or a signal stops it."""
    run_stoppable(run)


def run() -> int:
    """Run the command line and return the exit status.

    A `ShowTellError`, or an error of the operating system, becomes one red line.
    """
    protect_output()
    # Importing torch creates about 300,000 objects that live until the end. Python's garbage
    # collector would scan them several times while they are created, and once more at exit: 1.3 s
    # in total. So it runs rarely, and skips them at exit.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    status = 0
    try:
        app(prog_name="showtell")
    except SystemExit as end:
        status = int(end.code or 0)
    except ShowTellError as error:
        print_error(str(error))
        status = error.exit_status
    except MemoryError:
        print_error("there is not enough memory. Free some, then run the same command again.")
        status = 1
    except OSError as error:
        # With a path, it concerns the user's file. Any other may be a bug, so keep its traceback.
        if error.filename is None and error.errno not in DISK_ERRORS:
            raise
        where = "a file could not be read or written" if error.filename is None else error.filename
        print_error(f"{where}: {error.strerror}.")
        status = 1
    if (problem := find_lost_output()) and status == 0:
        print_error(f"stdout could not be written: {problem}. The files of the stage are complete.")
        status = 1
    return status

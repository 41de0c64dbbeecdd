"""A tiny project that passes through every stage, and its data folder before and after each."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from folders import content_of
from injection import KILL, LOG, Result, restore, run

COMMON = ("--dataset", "scenes")
NETWORK = ("--encoder", "resnet18", "--num-workers", "1")
TRAIN = (
    *("train", *COMMON, "--features", "resnet18-random-32"),
    *("--epochs", "2", "--hidden-size", "16", "--embed-size", "16", "--batch-size", "16"),
)


NEIGHBOURS = ("neighbours", *COMMON, "--features", "resnet18-random-32", "--neighbours", "5")


def features(size: int, *more: str) -> tuple[str, ...]:
    weights = ("--weights", "{root}/random.pth", "--image-size", str(size), "--shard-size", "5")
    return ("features", *COMMON, *NETWORK, *weights, *more)


# Name → command, in the order of the pipeline. Each starts where the one before it ended.
STAGES: dict[str, tuple[str, ...]] = {
    "download": ("download", *COMMON),
    "prepare": ("prepare", *COMMON, "--min-count", "1"),
    "features, HDF5": features(32),
    "features, Parquet": features(40, "--format", "parquet"),
    "features, HDF5 with grid": features(64, "--grid"),
    "features, Parquet with grid": features(72, "--format", "parquet", "--grid", "--views", "2"),
    "features, replaced": features(40, "--views", "2"),  # the old files have other names
    "neighbours": NEIGHBOURS,
    "train": (*TRAIN, "--run", "r"),
    "eval": ("eval", "--run", "r"),
    "prepare, replaced": ("prepare", *COMMON, "--min-count", "2"),
}
# A training that was killed after its first epoch, and is resumed.
RESUMED = "train, resumed"
# The short version of the tests.
QUICK_STAGES = ("download", "prepare", "features, HDF5", "train", "eval")


@dataclass
class Project:
    """The data folder of one worker.

    Attributes:
        root: folder of everything.
        before: stage → snapshot of the data folder before it.
        after: stage → content of the data folder after an undisturbed run.
    """

    root: Path
    before: dict[str, Path] = field(default_factory=dict)
    after: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def finished(self) -> Path:
        """Snapshot after all stages, where every file belongs to the others."""
        return self.root / "finished"

    @property
    def stopped(self) -> Path:
        """Snapshot of a training that was killed after its first epoch."""
        return self.root / "stopped"

    def command(self, stage: str) -> list[str]:
        return self.fill((*STAGES["train"], "--resume") if stage == RESUMED else STAGES[stage])

    def fill(self, words: Sequence[str]) -> list[str]:
        return [word.format(root=self.root) for word in words]

    def start(self, stage: str) -> None:
        """Put the data folder into the state before a stage."""
        restore(self.before[stage], self.data)

    def build(self, stages: Sequence[str]) -> None:
        for stage in stages:
            self.before[stage] = self.root / "before" / stage
            shutil.copytree(self.data, self.before[stage])
            must(run(self.command(stage), self.data))
            self.after[stage] = content_of(self.data)
            if stage == "eval":
                shutil.copytree(self.data, self.finished)
        self._stop_training()

    def _stop_training(self) -> None:
        self.start("train")
        log = self.root / "changes"
        must(run(self.command("train"), self.data, mode=LOG, log=log))
        changes = [line for line in log.read_text().splitlines() if not line.startswith("to ")]
        renamed = [i for i, line in enumerate(changes) if "last" in line and "rename" in line]
        self.start("train")
        # Two changes later: the checkpoint has its name, and its folder is synced.
        run(self.command("train"), self.data, mode=KILL, at=renamed[0] + 3)
        assert (self.data / "runs/r/last.safetensors").exists()
        assert not (self.data / "runs/r/manifest.json").exists()
        shutil.copytree(self.data, self.stopped)
        self.before[RESUMED], self.after[RESUMED] = self.stopped, self.after["train"]


def must(result: Result) -> Result:
    assert result.status == 0, result.output
    return result


@cache
def project(worker: int, stages: tuple[str, ...]) -> Project:
    """Return the project of a worker process, built on first use."""
    import torch
    from torchvision.models import resnet18

    made = Project(Path(tempfile.mkdtemp(prefix="chaos-", dir=os.environ["CHAOS_DIR"])))
    made.data.mkdir()
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), made.root / "random.pth")
    made.build(stages)
    return made


# What commands import when they run.
MODULES = (
    *("features.extract", "model.compare", "model.decoders.show_tell", "model.evaluate"),
    *("model.runs.curves", "model.train", "model.verify", "pipeline.prepare", "serving.captioner"),
)
LIBRARIES = ("PIL.Image", "pandas", "pyarrow.parquet", "pydantic", "tensorboardX", "typer.main")


def write_no_curves(run_dir: Path, *_: object) -> Path:
    from showtell.model.runs.layout import CURVES_NAME
    from showtell.pipeline.stage.files import write_bytes

    write_bytes(run_dir / CURVES_NAME)
    return run_dir / CURVES_NAME


def import_everything(*, draws_curves: bool = True) -> None:
    """Import what commands import, so that forked processes need not; make the dataset small.

    Without `draws_curves`, trainings write an empty `curves.png`.
    """
    import gc
    from importlib import import_module

    for name in ("cli", *MODULES):
        import_module(f"showtell.{name}")
    for name in LIBRARIES:
        with suppress(ImportError):
            import_module(name)
    import showtell.pipeline.download as download
    from showtell.model.metrics.meteor.build_index import open_index
    from showtell.model.runs import curves
    from showtell.pipeline.text.tokenizer import DEFAULT_TOKENIZER, load_tokenizer

    small = partial(download.draw_scenes, num_train=8, num_val=3, num_test=3)
    download.draw_scenes = small
    if not draws_curves:
        curves.draw_curves = write_no_curves
    open_index()  # built now, if this machine has none
    load_tokenizer(DEFAULT_TOKENIZER)
    gc.freeze()  # so that collections in forked processes do not copy all pages

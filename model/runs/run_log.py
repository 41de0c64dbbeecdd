"""The log of a training: `metrics.jsonl` and TensorBoard scalars.

`metrics.jsonl` has one JSON object per line: `step`, an int, and floats. Every few steps:

    loss               mean training loss since the previous record
    lr                 learning rate
    tokens_per_second  target tokens trained on
    reward             mean reward of the samples, with --scst
    seconds            training time so far

and after every epoch:

    epoch              number of the epoch, counted from 1
    val_<score>        validation scores, such as `val_CIDEr`, as fractions
    val_seconds        time of the validation
    seconds            training time so far

`tensorboard/` holds the same values as event files.
"""

import json
from pathlib import Path
from typing import Self

from tensorboardX import SummaryWriter

from ...pipeline.stage.files import atomic_path
from .layout import LOG_NAME


class RunLog:
    """Append scalars to `metrics.jsonl` and to `tensorboard/` of a run.

    Args:
        run_dir: folder of the run.
        step: later records are dropped, because a resumed training writes them again.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / LOG_NAME
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        with atomic_path(self.path) as partial:
            partial.write_text("".join(kept), "utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def _lines(self) -> list[str]:
        """Return the existing lines, without one that a power cut left incomplete."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("}\n")]

    def write(self, step: int, **values: float) -> None:
        """Record named scalars at a step."""
        self.file.write(json.dumps({"step": step} | values) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()

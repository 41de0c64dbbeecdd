"""The record of a training: `metrics.jsonl`, one JSON object a line, and TensorBoard scalars."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter

from ...pipeline.stage.files import atomic_path

METRICS_NAME = "metrics.jsonl"


class RunLog:
    """Writes the same scalars to `metrics.jsonl` and to `tensorboard/` of a run.

    Args:
        run_dir: folder of the run.
        step: records after this step are dropped: a resumed training writes them anew.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / METRICS_NAME
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        with atomic_path(self.path) as partial:
            partial.write_text("".join(kept), "utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def _lines(self) -> list[str]:
        """The whole lines there are; a line that a power cut left unfinished is dropped."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("}\n")]

    def write(self, step: int, **values: float) -> None:
        """Record scalars at a step; TensorBoard shows them by name."""
        self.file.write(json.dumps({"step": step} | values) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        self.board.close()

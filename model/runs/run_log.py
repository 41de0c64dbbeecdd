"""The log of a training: `metrics.jsonl` and TensorBoard events.

`metrics.jsonl` has one JSON object per line: `step`, an int, floats, and `checksum`, of the others.
Every few steps:

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

`tensorboard/` holds the same values as event files. Its other tabs show the options of the training
(HPARAMS) and some captions of the validation images after each epoch (TEXT).
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, scalar, text

from ...pipeline.stage.artifacts import FORMAT_ERRORS
from ...pipeline.stage.checksums import checksum, checksum_of_file, seal, unseal
from ...pipeline.stage.console import print_warning
from ...pipeline.stage.files import reporting_write_errors, sync, write_bytes, write_error
from .layout import LOG_NAME


class RunLog:
    """Append scalars to `metrics.jsonl` and to `tensorboard/` of a run.

    Args:
        run_dir: folder of the run.
        step: later records are dropped, because a resumed training writes them again.
        log_bytes: size of `metrics.jsonl` when the checkpoint was written.
        log_checksum: checksum of those bytes; empty if it is not known.

    Raises:
        StorageError: a file cannot be written.
    """

    def __init__(
        self, run_dir: Path, step: int, log_bytes: int = 0, log_checksum: str = ""
    ) -> None:
        self.path = run_dir / LOG_NAME
        content = self.path.read_bytes() if step and self.path.exists() else b""
        kept = content[:log_bytes]
        if checksum(kept) != log_checksum:
            kept, num_damaged = keep_sound_lines(content, step)
            if log_checksum or num_damaged:
                print_warning(
                    f"{self.path} is damaged: {num_damaged:,} lines were dropped, and others may "
                    "be missing. The weights are not affected."
                )
        write_bytes(self.path, kept)
        folder = run_dir / "tensorboard"
        try:
            self.file = self.path.open("ab")
            folder.mkdir(parents=True, exist_ok=True)
            # Not SummaryWriter: an error in its thread would block training instead of ending it.
            self.board = EventsWriter(str(folder / "events"))
            self.board.write_event(Event(step=step + 1, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)  # drops older events from here on
            self.board.write_event(Event(step=step + 1, session_log=start))
        except OSError as error:
            raise write_error(folder, error) from error

    def write(self, step: int, **values: float) -> None:
        """Record named scalars at a step.

        Raises:
            StorageError: the disk is full.
        """
        with reporting_write_errors(self.path):
            self.file.write((json.dumps(seal({"step": step} | values)) + "\n").encode())
            self.file.flush()
            for name, value in values.items():
                self._write_event(step, scalar(name, value))

    def write_options(self, options: Mapping[str, Any], score: str) -> None:
        """Record the options of the training, for TensorBoard only.

        Args:
            options: name → text, number, bool or None.
            score: name of the recorded scalar that runs are compared by.
        """
        with reporting_write_errors(self.path):
            for summary in hparams(dict(options), {score: 0.0}):
                self._write_event(0, summary)

    def write_captions(self, step: int, rows: Sequence[tuple[str, str, str]]) -> None:
        """Record captions of some images as a table, for TensorBoard only.

        Args:
            step: optimizer steps so far.
            rows: file name of the image, its caption, and one of its references.
        """
        cells = [[_escape(cell) for cell in row] for row in rows]
        lines = ["| image | caption | a reference |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in cells]
        with reporting_write_errors(self.path):
            self._write_event(step, text("val_captions", "\n".join(lines)))

    def _write_event(self, step: int, summary: Summary) -> None:
        self.board.write_event(Event(step=step, wall_time=time.time(), summary=summary))

    def sync(self) -> tuple[int, str]:
        """Wait until all records are on the disk; return size and checksum of `metrics.jsonl`."""
        with reporting_write_errors(self.path):
            sync(self.path)
            self.board.flush()
        return self.path.stat().st_size, checksum_of_file(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with reporting_write_errors(self.path):
            self.file.close()
            self.board.close()


def _escape(cell: str) -> str:
    """Return a text without characters that end a cell of a Markdown table."""
    return " ".join(cell.replace("|", "\\|").split())


def keep_sound_lines(content: bytes, step: int) -> tuple[bytes, int]:
    """Return the undamaged lines of a log up to `step`, and the number of damaged lines.

    A power cut may leave zeros or half a line. Lines of earlier versions have no checksum; all
    their values must be numbers.
    """
    *lines, rest = content.split(b"\n")
    kept, num_damaged = [], int(bool(rest))
    for line in lines:
        try:
            values = unseal(json.loads(line))
            if not all(isinstance(value, int | float) for value in values.values()):
                raise ValueError("not all values are numbers")
            if int(values["step"]) <= step:
                kept.append(line + b"\n")
        except FORMAT_ERRORS:
            num_damaged += 1
    return b"".join(kept), num_damaged

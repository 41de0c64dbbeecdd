"""Everything showtell prints: progress, notes, result tables, JSON, warnings and errors.

| function | shows | stream | `--quiet` | `--json` |
|---|---|---|---|---|
| `print_table`, `print_result` | results for people | stdout | shown | hidden |
| `print_json` | results for programs | stdout | shown | shown, and only then |
| `print_note`, `ProgressLine` | what a stage is doing | stdout | hidden | stderr |
| `print_aside` | notes beside results that programs may read | stderr | hidden | stderr |
| `print_warning`, `print_error` | problems | stderr | shown | stderr |
"""

import errno
import io
import json
import math
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# If the output is not a terminal, long paths must stay on one line for other programs.
WIDTH = None if sys.stdout and sys.stdout.isatty() else 200

console = Console(highlight=False, emoji=False, width=WIDTH)
error_console = Console(stderr=True, highlight=False, emoji=False)

PLAIN_INTERVAL_S = 10.0


class _Output(io.FileIO):
    """A file whose writes never fail: output that cannot be written is dropped.

    Attributes:
        problem: the error of the first write that failed.
    """

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # a non-blocking pipe is full
                select.select([], [self], [])
            return count
        except OSError as error:
            self.problem = self.problem or error
            return memoryview(data).nbytes


def protect_output() -> None:
    """Keep the command running if stdout or stderr is closed or full.

    Characters that they cannot encode are written as escape sequences.
    """
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # replaced by the calling program
        raw = _Output(descriptor, "w", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",
            line_buffering=raw.isatty() or name == "stderr",
            write_through=stream.write_through if stream else False,
        )
        setattr(sys, name, text)


def find_lost_output() -> str | None:
    """Return why part of stdout could not be written, or None.

    A closed pipe does not count: its reader, such as `head`, wanted no more output.
    """
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Output):
        return None
    sys.stdout.flush()
    problem = raw.problem
    return None if problem is None or problem.errno == errno.EPIPE else problem.strerror


@dataclass
class _OutputMode:
    """What `--quiet` and `--json` ask for.

    Attributes:
        quiet: whether progress and notes are hidden.
        json: the stream for the JSON document; None without `--json`.
    """

    quiet: bool = False
    json: TextIO | None = None


_mode = _OutputMode()


@contextmanager
def output_mode(*, quiet: bool = False, json: bool = False) -> Iterator[None]:
    """Apply `--quiet` and `--json` to everything printed in the `with` block.

    With `json`, only `print_json` writes to stdout. Other libraries that print there write to
    stderr instead.
    """
    previous = _mode.quiet, _mode.json
    _mode.quiet, _mode.json = quiet, sys.stdout if json else None
    try:
        with redirect_stdout(sys.stderr if json else sys.stdout):
            yield
    finally:
        _mode.quiet, _mode.json = previous


def silence_output() -> None:
    """Print nothing from now on, because another process of the same command prints it."""
    _mode.quiet, _mode.json = True, None
    console.quiet = error_console.quiet = True


def silence_errors(is_silent: bool) -> None:
    """Print no warnings and errors from now on, or print them again."""
    error_console.quiet = is_silent


def is_quiet() -> bool:
    """Return whether `--quiet` was given."""
    return _mode.quiet


def worker_initializer() -> Callable[[], None] | None:
    """Return what a worker process calls first to respect `--quiet` and `--json`."""
    return _silence_worker if _mode.quiet or _mode.json is not None else None


def _silence_worker() -> None:
    _mode.quiet = True
    sys.stdout = sys.stderr


class ProgressLine:
    """One line that shows how far a stage is.

    On a terminal it is a bar that is redrawn; elsewhere a plain line every ten seconds.

    Args:
        label: what is in progress.
        total: number of units to process.
        unit: name of a unit, such as "img".
        start: number of units processed earlier; they do not count as speed.

    Example:
        with ProgressLine("features", total=83_000, unit="img") as progress:
            for batch in batches:
                progress.advance(len(batch), shares=stopwatch.shares())
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.start = self.done = start
        self.started = self.printed = time.monotonic()
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        if shows_progress():
            self._start_bar()
        return self

    def _start_bar(self) -> None:
        # Imported here: `showtell --help` need not wait for it.
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn(self.label),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=_note_console(),
            transient=True,
        )
        self.task = self.bar.add_task("", total=self.total, completed=self.start, text="")
        self.bar.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.start) / max(time.monotonic() - self.started, 1e-9)

    def advance(
        self, count: int, shares: Mapping[str, float] | None = None, text: str | None = None
    ) -> None:
        """Count `count` more units as done, and show it.

        Args:
            count: units finished since the last call.
            shares: part of the work → its share of the time, to show the bottleneck.
            text: shown instead of the rate, the shares and the remaining time.
        """
        self.done += count
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, text=text or self._describe(shares))
        elif time.monotonic() - self.printed >= PLAIN_INTERVAL_S:
            self.printed = time.monotonic()
            described = text or self._describe(shares)
            print_note(f"{self.label} {self.done:,}/{self.total:,}  {described}")

    def _describe(self, shares: Mapping[str, float] | None) -> str:
        parts = [f"{self.rate:,.0f} {self.unit}/s"]
        parts += [f"{name} {share:.0%}" for name, share in (shares or {}).items()]
        if self.rate > 0:
            parts.append(f"eta {format_seconds((self.total - self.done) / self.rate)}")
        return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """Return `42.1s`, `3:05` or `2:03:05`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_bytes(size_bytes: float) -> str:
    """Return `512 B`, `3.1 MB` or `12.5 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def print_table(title: str, rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Print results as a small table. With a header, columns of numbers align right."""
    if _mode.json is not None:
        return
    table = Table(title=Text(title), title_justify="left", show_header=bool(header), box=None)
    table.title_style = "bold"
    listed = list(rows)
    for index in range(len(listed[0]) if listed else len(header)):
        is_number = bool(header) and all(row[index].lstrip("+-")[:1].isdigit() for row in listed)
        justify: JustifyMethod = "right" if is_number else "left"
        table.add_column(header[index] if header else "", justify=justify, overflow="fold")
    for row in listed:
        table.add_row(*map(Text, row))  # as Text: rich would read "[...]" in a path as markup
    console.print(table)


def print_result(text: str) -> None:
    """Print a line of results for people."""
    if _mode.json is None:
        console.print(text, soft_wrap=True, markup=False)


def print_json(value: Any) -> None:
    """Print the results as one JSON document if `--json` was given, else nothing.

    Args:
        value: JSON values, dataclasses, paths, or containers of these. Numbers that JSON lacks
            (NaN, infinity) become null.
    """
    if _mode.json is not None:
        plain = _to_json(value)
        text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
        try:
            text.encode(_mode.json.encoding or "utf-8")
        except UnicodeEncodeError:  # JSON has its own escape sequences
            text = json.dumps(plain, indent=2, allow_nan=False)
        print(text, file=_mode.json, flush=True)


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _note_console() -> Console:
    """Return where notes and progress go: stdout, but stderr if stdout is for JSON."""
    return console if _mode.json is None else error_console


def shows_progress() -> bool:
    """Return whether progress bars are shown: on a terminal, without `--quiet`."""
    return not _mode.quiet and _note_console().is_terminal


def print_note(text: str) -> None:
    """Print a line about what a stage is doing."""
    if not _mode.quiet:
        _note_console().print(text, soft_wrap=True, markup=False)


def print_aside(text: str) -> None:
    """Print a note to stderr, because the command's stdout may be read by other programs."""
    if not _mode.quiet:
        error_console.print(text, soft_wrap=True, markup=False)


def print_warning(text: str) -> None:
    """Print one yellow line about a problem that does not end the stage."""
    text = " ".join(text.splitlines())
    error_console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)


def print_error(text: str) -> None:
    """Print one red line about the problem that ends the stage."""
    text = " ".join(text.splitlines())
    error_console.print(f"error: {text}", style="bold red", soft_wrap=True, markup=False)

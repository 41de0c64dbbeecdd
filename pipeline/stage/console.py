"""What the user sees while a stage works and when it ends: progress and summary tables (rich)."""

import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

# Off a terminal nothing is folded at 80 columns: paths stay whole for other programs.
WIDTH = None if sys.stdout.isatty() else 200

console = Console(highlight=False, emoji=False, width=WIDTH)
error_console = Console(stderr=True, highlight=False, emoji=False)

PLAIN_INTERVAL_S = 10.0


class ProgressLine:
    """One line that tells how far a stage is.

    On a terminal a bar that is redrawn; elsewhere a plain line every ten seconds.

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
        self.task = TaskID(0)

    def __enter__(self) -> Self:
        if console.is_terminal:
            columns = (
                TextColumn(self.label),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("", total=self.total, completed=self.start, text="")
            self.bar.start()
        return self

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
        """Units a second since the start."""
        return (self.done - self.start) / max(time.monotonic() - self.started, 1e-9)

    def advance(
        self, count: int, shares: Mapping[str, float] | None = None, text: str | None = None
    ) -> None:
        """Count `count` more units as done.

        Args:
            count: units finished since the last call.
            shares: part → share of the time it took, to show the bottleneck.
            text: replaces the default rate, shares and eta.
        """
        self.done += count
        if self.bar is not None:
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
    """`42.1s`, `3:05` or `2:03:05`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_bytes(size_bytes: float) -> str:
    """`512 B`, `3.1 MB`, `12.5 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def print_table(title: str, rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Print rows of cells as a small table; with a header, numbers align right."""
    table = Table(title=Text(title), title_justify="left", show_header=bool(header), box=None)
    table.title_style = "bold"
    listed = list(rows)
    for index in range(len(listed[0]) if listed else len(header)):
        is_number = bool(header) and all(row[index].lstrip("+-")[:1].isdigit() for row in listed)
        justify: JustifyMethod = "right" if is_number else "left"
        table.add_column(header[index] if header else "", justify=justify, overflow="fold")
    for row in listed:
        table.add_row(*map(Text, row))  # paths may look like markup
    console.print(table)


def print_note(text: str) -> None:
    """Print one line that the user should see but need not act on."""
    console.print(text, soft_wrap=True, markup=False)


def print_aside(text: str) -> None:
    """Print one line beside the output, which other programs may read."""
    error_console.print(text, soft_wrap=True, markup=False)


def print_warning(text: str) -> None:
    """Print one yellow line: the stage goes on, but the user should know."""
    text = " ".join(text.splitlines())
    error_console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)


def print_error(text: str) -> None:
    """Print one red line: the stage could not go on."""
    text = " ".join(text.splitlines())
    error_console.print(f"error: {text}", style="bold red", soft_wrap=True, markup=False)

"""The command `showtell report`: write a report about an evaluation.

It is one HTML file that needs no network, or a Markdown file with its plots beside it.
"""

from pathlib import Path

from ...pipeline.stage.console import format_bytes, print_result
from ...pipeline.stage.errors import StorageError
from ...pipeline.stage.files import write_bytes
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import ReportConfig
from .collect import collect
from .page import render_html, render_markdown


def write_report(config: ReportConfig) -> Path:
    """Write the report about an evaluation, and return its path.

    Raises:
        MissingArtifactError: the run, its evaluation, or the captions are missing.
        DamagedFileError: a file is damaged.
        MismatchError: an evaluation of `--against` has other images.
        StorageError: the report cannot be written.
    """
    watch = Stopwatch()
    report = collect(config)
    path = config.output or report.results.run_dir / f"report.{config.suffix}"
    files: dict[str, bytes] = {}
    if config.suffix == "md":
        content, files = render_markdown(report, path.stem)
    else:
        content = render_html(report)
    try:
        for name, plot in files.items():
            write_bytes(path.with_name(name), plot)
        write_bytes(path, content)
    except StorageError as error:
        raise StorageError(f"{error} To write the report elsewhere, add --output FILE.") from None
    print_result(
        f"report: {path} ({format_bytes(len(content))}, {len(report.images):,} images, "
        f"{watch.seconds:.1f} s)"
    )
    return path

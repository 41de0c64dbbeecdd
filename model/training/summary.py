"""The end of a training: a drawing of its curves, and a table."""

from pathlib import Path

from ...pipeline.stage.console import format_bytes, format_seconds, print_table, print_warning
from ...pipeline.stage.manifest import Manifest

ADVICE = "A smaller --batch-size or more --epochs would let the decoder learn more."


def show_summary(manifest: Manifest, run_dir: Path, monitor: str, curves: Path | None) -> None:
    """Print what a finished training has done.

    Args:
        manifest: of the run.
        run_dir: folder of the run.
        monitor: the score that selected the best epoch.
        curves: path of the drawing, if there is one.
    """
    counts, best_score = manifest.counts, manifest.details[monitor]
    captions_per_second = counts["num_epochs"] * counts["num_captions"] / manifest.seconds
    rows = [
        ("captions", f"{counts['num_captions']:,}"),
        ("parameters", f"{counts['num_parameters']:,}"),
        ("epochs", f"{counts['num_epochs']} (best {counts['best_epoch']})"),
        (f"best val {monitor}", f"{100 * best_score:.1f}"),
        ("speed", f"{captions_per_second:,.0f} captions/s, validation included"),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(run_dir)),
    ]
    if curves is not None:
        rows.append(("curves", str(curves)))
    print_table("train", rows)
    if best_score == 0:
        print_warning(f"no val caption has a {monitor} above 0. {ADVICE}")


def try_to_draw_curves(run_dir: Path, monitor: str, best_epoch: int) -> Path | None:
    """Draw the curves; return the path of the file, or None after a warning if that fails."""
    try:
        # Imported at the end, so that no training waits for matplotlib.
        from ..runs.curves import draw_curves

        return draw_curves(run_dir, monitor, best_epoch)
    except Exception as error:  # the training has succeeded, so a drawing must not fail it
        print_warning(f"the curves of {run_dir} could not be drawn: {error}")
        return None

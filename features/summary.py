"""What `showtell features` prints when it has finished."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..pipeline.stage.console import format_bytes, format_seconds, print_table
from ..pipeline.stage.manifest import Manifest

NUM_REASONS_SHOWN = 10
OPTIONAL_COUNTS = {
    "views": "num_views",
    "grid cells": "grid_places",
    "grid width": "grid_dim",
}  # label → key in the manifest


def describe_counts(manifest: Manifest) -> str:
    """Return the counts as text, e.g. `8,000 images, 6 views, 49 grid cells`."""
    counts = manifest.counts
    labels = {"images": "num_images", **OPTIONAL_COUNTS}
    return ", ".join(f"{counts[key]:,} {label}" for label, key in labels.items() if key in counts)


def print_summary(directory: Path, manifest: Manifest) -> None:
    """Print the summary table of the finished stage."""
    counts, details = manifest.counts, manifest.details
    shares = "  ".join(f"{name} {share:.0%}" for name, share in details["shares"].items())
    rows = [
        ("images", f"{counts['num_images']:,}"),
        ("skipped", f"{counts['num_skipped']:,}"),
        *(("", line) for line in describe_reasons(manifest.skipped)),
        ("feature width", f"{counts['feature_dim']:,} ({details['backbone']})"),
        *((label, f"{counts[key]:,}") for label, key in OPTIONAL_COUNTS.items() if key in counts),
        ("precision", manifest.config["precision"]),
        ("shards", f"{counts['num_shards']:,}"),
        ("computed now", f"{details['num_computed']:,}"),
        ("speed", f"{details['images_per_second']:,.1f} images/s  {shares}"),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(directory)),
    ]
    print_table("features", rows)


def describe_reasons(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each reason why images were skipped, the most frequent first."""
    counts = Counter(reason for _, reason in skipped)
    examples = {reason: name for name, reason in reversed(skipped)}
    lines = [
        f"{count:,} × {reason}, e.g. {examples[reason]}"
        if count > 1
        else f"{examples[reason]}: {reason}"
        for reason, count in counts.most_common(NUM_REASONS_SHOWN)
    ]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(NUM_REASONS_SHOWN))
    return lines + ([f"{rest:,} for other reasons, listed in manifest.json"] if rest else [])

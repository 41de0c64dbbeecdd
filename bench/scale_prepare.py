"""Time and memory of `showtell prepare` for generated tables of URLs of 1, 3 and 10 million rows.

    python -m showtell.bench.scale_prepare [--rows 1_000_000 3_000_000 10_000_000] [--work DIR]

Each table is a set of Parquet files, prepared in a process of its own. It prints one line for each:
rows, seconds, rows/s, and the peak memory of prepare; then that of two more processes, which read
what `features` keeps of all images, and what `train` keeps of all captions. Captions are as long as
COCO's, with Zipf's distribution of words, and one caption in a thousand has a word of its own: so
the number of different words grows with the rows.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .coco_scale import generate_captions

ROWS_PER_FILE = 100_000
RARE_WORDS = 0.001  # of all captions end in a word that no other has
START = """
import sys
from pathlib import Path
from showtell.bench.measurement import peak_memory
from showtell.pipeline.stage.console import output_mode
table, data = sys.argv[1], Path(sys.argv[2])
"""
PREPARE = """
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare
with output_mode(quiet=True):
    manifest = prepare(PrepareConfig(data=data, dataset="big", table=table))
print(manifest.seconds, peak_memory(), manifest.counts["num_images"])
"""
# What `features` and `train` keep in memory for the whole run, besides the features themselves.
LIST_IMAGES = """
from showtell.features.config import FeaturesConfig
from showtell.features.plan import list_images
kept = list_images(FeaturesConfig(data=data, dataset="big"))
print(peak_memory())
"""
READ_CAPTIONS = """
import torch  # as in the stage
from showtell.pipeline.captions import read_captions, read_images
folder = data / "big" / "captions"
images = read_images(folder / "images.parquet")
kept = read_captions(folder / "captions.parquet").select(images.select("train"))
print(peak_memory())
"""


def write_tables(folder: Path, num_rows: int, seed: int = 0) -> None:
    """Write a table of URLs and captions as Parquet files of `ROWS_PER_FILE` rows.

    Args:
        folder: where to write; it is created.
        num_rows: of all files together.
        seed: of the captions.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for start in range(0, num_rows, ROWS_PER_FILE):
        rows = range(start, min(start + ROWS_PER_FILE, num_rows))
        captions = generate_captions(len(rows), generator)
        for index in np.flatnonzero(generator.random(len(rows)) < RARE_WORDS).tolist():
            captions[index] += f" rare{start + index}"
        urls = [f"https://images.example.org/{row % 997:03}/{row:09}.jpg" for row in rows]
        table = pa.table({"url": urls, "caption": captions})
        pq.write_table(table, folder / f"{start // ROWS_PER_FILE:05}.parquet")


def run(code: str, pattern: str, data: Path) -> list[float]:
    """Run code in a new process; return the numbers in the last line that it prints."""
    command = [sys.executable, "-c", START + code, pattern, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def measure_prepare(pattern: str, data: Path) -> tuple[float, int, int]:
    """Prepare a table in a new process; return seconds, peak memory in bytes, and images."""
    seconds, peak, num_images = run(PREPARE, pattern, data)
    return seconds, int(peak), int(num_images)


def main() -> None:
    """Generate and prepare tables of several sizes, and print the figures."""
    parser = argparse.ArgumentParser(description="Time and memory of 'showtell prepare'.")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 3 * 10**6, 10**7])
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    options = parser.parse_args()
    titles = ("rows", "seconds", "rows/s", "prepare MB", "list MB", "captions MB")
    print(*(f"{title:>12}" for title in titles))
    for num_rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            pattern, data = f"{work}/table/*.parquet", Path(work) / "data"
            write_tables(Path(work) / "table", num_rows)
            seconds, peak, _ = measure_prepare(pattern, data)
            peaks = [peak, *(run(code, pattern, data)[0] for code in (LIST_IMAGES, READ_CAPTIONS))]
        figures = [num_rows, seconds, num_rows / seconds, *(peak / 1e6 for peak in peaks)]
        print(*(f"{figure:12,.0f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()

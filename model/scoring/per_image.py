"""The table of `showtell score --per-image`: one row per image.

image_id    integer if all ids are integers, else text; the number of the line without ids
caption     the candidate
Bleu_1 …    one column per score, float64, as fractions
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from ...pipeline.stage.files import atomic_path
from ..metrics.image_scores import ImageScores
from .pairs import Pairs


def write_table(path: Path, pairs: Pairs, images: ImageScores) -> None:
    """Write the scores of each image to a CSV or Parquet file, atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    columns = {"image_id": list(pairs.ids), "caption": list(pairs.candidates), **images.of_each()}
    table = pa.table(columns)
    write = pc.write_csv if path.suffix.lower() == ".csv" else pq.write_table
    with atomic_path(path) as partial, partial.open("wb") as file:
        write(table, file)

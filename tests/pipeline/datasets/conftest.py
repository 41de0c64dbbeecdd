"""A small valid source in each format of annotations, to be damaged by tests."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.pipeline.config import PrepareConfig

NAMES = ["1_a.jpg", "2_b.jpg", "3_c.jpg", "4_d.jpg"]
SPLITS = ["train", "train", "val", "test"]
ROWS = [
    (name, f'A "{name[2]}" runs, 跑.', split) for name, split in zip(NAMES, SPLITS, strict=True)
]


@dataclass
class Source:
    """A folder with annotations, and the options that read it."""

    file: Path
    config: PrepareConfig

    def load(self) -> Any:
        from showtell.pipeline.datasets.registry import load_dataset

        return load_dataset(self.config)


def as_coco() -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "height": 7.5} for i, name in enumerate(NAMES, 1)]
    captions = [{"id": i, "image_id": i, "caption": row[1]} for i, row in enumerate(ROWS, 1)]
    return {"info": {"year": 2017}, "images": images, "annotations": captions}


def as_karpathy() -> dict[str, Any]:
    images = [
        {"filename": name, "imgid": i, "split": split, "sentences": [{"raw": caption}]}
        for i, (name, caption, split) in enumerate(ROWS)
    ]
    return {"dataset": "mine", "images": images}


def as_csv(rows: list[tuple[str, ...]], header: str) -> str:
    lines = [",".join('"' + text.replace('"', '""') + '"' for text in row) for row in rows]
    return "\n".join([header, *lines]) + "\n"


FORMATS = (
    "coco",
    "karpathy",
    "flickr-csv",
    "flickr-token",
    "flickr-pipes",
    "csv",
    "jsonl",
    "parquet",
)


@pytest.fixture(scope="session")
def write_source() -> Callable[[str, Path], Source]:
    """Write a valid source of a format of `FORMATS` to a folder."""

    def write(kind: str, root: Path) -> Source:
        images = root / "train2017" if kind == "coco" else root
        images.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (images / name).write_bytes(b"x")
        flickr = PrepareConfig(data=root / "data", dataset="flickr8k", source=root)
        if kind == "coco":
            path = root / "annotations" / "captions_train2017.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(as_coco()))
            return Source(path, PrepareConfig(data=root / "data", dataset="coco2017", source=root))
        if kind == "karpathy":
            path = root / "dataset_mine.json"
            path.write_text(json.dumps(as_karpathy()))
            options: dict[str, Any] = {"karpathy": path, "source": root}
            return Source(path, PrepareConfig(data=root / "data", dataset="mine", **options))
        if kind == "flickr-csv":
            path = root / "captions.txt"
            path.write_text(as_csv([row[:2] for row in ROWS], "image,caption"), "utf-8")
            return Source(path, flickr)
        if kind == "flickr-token":
            path = root / "Flickr8k.token.txt"
            path.write_text("".join(f"{row[0]}#0\t{row[1]}\n" for row in ROWS), "utf-8")
            return Source(path, flickr)
        if kind == "flickr-pipes":
            path = root / "results.csv"
            text = "".join(f"{row[0]}| 0| {row[1]}\n" for row in ROWS)
            path.write_text(f"image_name| comment_number| comment\n{text}", "utf-8")
            return Source(path, flickr)
        path = root / f"captions.{kind}"
        if kind == "csv":
            path.write_text(as_csv(ROWS, "file_name,caption,split"), "utf-8")
        else:
            columns = dict(
                zip(("file_name", "caption", "split"), zip(*ROWS, strict=True), strict=True)
            )
            rows = [dict(zip(columns, row, strict=True)) for row in ROWS]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            if kind == "parquet":
                pq.write_table(pa.table({name: pa.array(c) for name, c in columns.items()}), path)
        return Source(path, PrepareConfig(data=root / "data", dataset="mine", table=path))

    return write

"""The folders and file names of runs and ensembles.

data/runs/<run>/                          one run
    config.json                           see `run.py`
    vocab.json                            a copy of the dataset's, see `pipeline/text/vocab.py`
    best.safetensors, last.safetensors    see `checkpoint.py`
    metrics.jsonl, tensorboard/           see `run_log.py`
    manifest.json                         once training is finished
    eval/<split>-<decoding>/              see `model/evaluate.py`
data/ensembles/<run>+<run>…/              several runs evaluated together
    eval/<split>-<decoding>/
"""

from collections.abc import Sequence
from pathlib import Path

from ...pipeline.layout import VOCAB_JSON

CONFIG_NAME = "config.json"
VOCAB_NAME = VOCAB_JSON
BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"
LOG_NAME = "metrics.jsonl"


def run_folder(data: Path, names: Sequence[str]) -> Path:
    """Return the folder of a run, or of an ensemble if there are several names."""
    if len(names) == 1:
        return data / "runs" / names[0]
    return data / "ensembles" / "+".join(sorted(names))

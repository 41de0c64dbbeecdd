"""The folders and file names of runs and ensembles.

data/runs/<run>/                          one run
    config.json                           see `run.py`
    vocab.json                            a copy of the dataset's, see `pipeline/text/vocab.py`
    best.safetensors, last.safetensors    see `checkpoint.py`
    metrics.jsonl, tensorboard/           see `run_log.py`
    curves.png                            see `curves.py`
    manifest.json                         once training is finished
    eval/<split>-<decoding>/              see `model/evaluate.py`
    report.html                           see `serving/report/`
data/ensembles/<run>+<run>…/              several runs evaluated together
    eval/<split>-<decoding>/

A bundle, written by `showtell export`, is a folder anywhere. It has what captioning needs:

<bundle>/
    config.json, vocab.json               as in a run
    model.safetensors                     the weights of best.safetensors; maybe in half precision
    consensus.safetensors                 with --consensus, see `serving/neighbors.py`
    encoder.onnx, decoder.onnx            with --onnx, see `serving/onnx_export.py`
    vocab.txt                             with --onnx, one entry per line, in the order of the ids
    README.md                             the model card, see `serving/model_card.py`
    manifest.json
"""

from collections.abc import Sequence
from pathlib import Path

from ...pipeline.layout import VOCAB_JSON
from ...pipeline.stage.artifacts import BUNDLE_FILE, is_bundle

CONFIG_NAME = "config.json"
VOCAB_NAME = VOCAB_JSON
BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"
LOG_NAME = "metrics.jsonl"
CURVES_NAME = "curves.png"
METRICS_NAME = "metrics.json"  # of an evaluation
MODEL_NAME = BUNDLE_FILE
CONSENSUS_NAME = "consensus.safetensors"
CARD_NAME = "README.md"
ENCODER_ONNX_NAME, DECODER_ONNX_NAME = "encoder.onnx", "decoder.onnx"
VOCAB_TXT_NAME = "vocab.txt"


def weights_path(folder: Path) -> Path:
    """Return the file with the weights of a run or a bundle."""
    return folder / (MODEL_NAME if is_bundle(folder) else BEST_NAME)


def run_folder(data: Path, names: Sequence[str]) -> Path:
    """Return the folder of a run, or of an ensemble if there are several names."""
    if len(names) == 1:
        return data / "runs" / names[0]
    return data / "ensembles" / "+".join(sorted(names))

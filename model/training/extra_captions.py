"""More captions to train on, such as those that consensus re-ranking chooses for training images.

Source: a student that learns from a teacher's outputs, as sequences: Kim and Rush 2016,
arXiv:1606.07947.
"""

from itertools import chain
from pathlib import Path

import numpy as np

from ...pipeline.captions import EncodedCaptions
from ...pipeline.datasets.caption_files import read_captions
from ...pipeline.stage.errors import MismatchError
from ...pipeline.stage.ragged import to_offsets
from ...pipeline.text.vocab import Vocab


def add_captions(captions: EncodedCaptions, path: Path, vocab: Vocab) -> EncodedCaptions:
    """Return captions of training images followed by those of a file.

    Args:
        captions: of all training images.
        path: captions by image id in any format of `pipeline/datasets/caption_files.py`, such as
            the captions.json of an evaluation.
        vocab: of the dataset.

    Raises:
        MissingArtifactError: the file does not exist.
        DatasetError: the file has another layout.
        MismatchError: it has a caption of an image that is not in the train split.
    """
    image_ids, tokens = list[int](), list[list[int]]()
    known = {str(image_id): image_id for image_id in np.unique(captions.image_ids).tolist()}
    for key, texts in read_captions(path, "extra captions").texts.items():
        if key not in known:
            raise MismatchError(
                f"--extra-captions {path} has a caption of image {key}, which is not in the train "
                "split. Make it with 'showtell eval --split train'."
            )
        for text in texts:
            image_ids.append(known[key])
            tokens.append(vocab.encode(vocab.tokenize(text)))
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    kept = lengths > 0
    start = int(captions.caption_ids.max(initial=-1)) + 1
    return EncodedCaptions(
        np.concatenate([captions.caption_ids, start + np.arange(int(kept.sum()))]),
        np.concatenate([captions.image_ids, np.array(image_ids, np.int64)[kept]]),
        np.concatenate([captions.tokens, np.array([*chain.from_iterable(tokens)], np.int32)]),
        to_offsets(np.concatenate([captions.lengths, lengths[kept]])),
    )

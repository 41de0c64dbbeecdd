"""Pretrained word vectors from a text file, as GloVe and word2vec publish them.

One word a line, its numbers behind it, separated by spaces; word2vec's first line, which counts
words and numbers, is passed over.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...pipeline.stage.errors import ConfigError, MismatchError
from ...pipeline.stage.files import require_file
from ...pipeline.text.vocab import Vocab

FILE_DESCRIPTION = "a GloVe or word2vec text file"


def read_word_vectors(path: Path, vocab: Vocab, size: int) -> dict[int, Tensor]:
    """Read the vectors of the words of a vocabulary.

    Args:
        path: of the text file, UTF-8.
        vocab: words, or pieces that begin a word.
        size: E, numbers of each vector.

    Returns:
        token_id → (E,) float32, of the words that the file has.

    Raises:
        MissingArtifactError: there is no such file.
        MismatchError: its vectors are not of this size, or it is no such file.
        ConfigError: it has none of the words.
    """
    wanted = {
        word.removeprefix(" "): token_id
        for word, token_id in vocab.ids.items()
        if vocab.unit == "words" or word.startswith(" ")  # a piece inside a word is no word
    }
    found: dict[int, Tensor] = {}
    require_file(path, "--word-vectors", FILE_DESCRIPTION)
    number = 1
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(map(str.rstrip, lines), 1):
                # A word of GloVe's may hold spaces itself.
                word, *values = line.rsplit(" ", size)
                if not line:
                    continue
                if " " not in line:
                    raise ValueError("no space parts its words from their numbers")
                if number == 1 and line.count(" ") == 1:
                    continue
                if len(values) != size or (number <= 2 and " " in word):
                    raise MismatchError(
                        f"{path}, line {number}: {line.count(' ')} numbers, expected {size} by "
                        f"--embed-size. Give --embed-size {line.count(' ')}, or another file."
                    )
                if word in wanted:
                    vector = torch.tensor([float(value) for value in values])
                    if not vector.isfinite().all():
                        raise ValueError("a number that is not finite")
                    found[wanted[word]] = vector
    except ValueError as error:  # also of UTF-8
        raise MismatchError(
            f"{path}, line {number}, is no word and its vector ({error}). Give "
            f"--word-vectors a GloVe or word2vec text file."
        ) from None
    if not found:
        raise ConfigError(
            f"{path} has none of the {len(wanted):,} words of the vocabulary. Give another file, "
            f"or leave out --word-vectors."
        )
    return found


@torch.no_grad()
def set_word_vectors(embedding: Tensor, vectors: dict[int, Tensor]) -> None:
    """Put vectors into the (V, E) matrix, centred and scaled to the spread that it has.

    A decoder that starts far from its usual scale would first have to unlearn it.
    """
    token_ids = torch.tensor(list(vectors))
    values = torch.stack(list(vectors.values()))
    if len(values) > 2:  # of one or two nothing would be left, or opposites
        values = values - values.mean(0)
    values *= embedding.std() / values.std().clamp(min=1e-12)
    embedding[token_ids.to(embedding.device)] = values.to(embedding)

"""Reads pretrained word vectors from a GloVe or word2vec text file.

Each line holds a word and its numbers, separated by spaces. word2vec's header line, which holds two
numbers, is skipped.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...pipeline.stage.errors import ConfigError, MismatchError
from ...pipeline.stage.files import require_file
from ...pipeline.text.vocab import Vocab

FILE_DESCRIPTION = "a GloVe or word2vec text file"


def read_word_vectors(path: Path, vocab: Vocab, size: int) -> dict[int, Tensor]:
    """Return the vectors of the words in a vocabulary.

    Args:
        path: a UTF-8 text file.
        vocab: of words or subwords; only subwords that start a word are looked up.
        size: E, numbers per vector.

    Returns:
        token_id → (E,) float32, for the words found in the file.

    Raises:
        MissingArtifactError: the file does not exist.
        MismatchError: a line does not consist of a word and `size` finite numbers.
        ConfigError: the file contains none of the words.
    """
    wanted = {
        word.removeprefix(" "): token_id
        for word, token_id in vocab.ids.items()
        if vocab.unit != "pieces" or word.startswith(" ")
    }
    found: dict[int, Tensor] = {}
    require_file(path, "--word-vectors", FILE_DESCRIPTION)
    line_number = 1
    try:
        with path.open(encoding="utf-8") as lines:
            for line_number, line in enumerate(map(str.rstrip, lines), 1):
                is_header = line_number == 1 and line.count(" ") == 1
                if not line or is_header:
                    continue
                word, vector = _parse_line(line, size, line_number, path)
                if word in wanted:
                    found[wanted[word]] = torch.tensor([float(value) for value in vector])
                    if not found[wanted[word]].isfinite().all():
                        raise ValueError("a number is not finite")
    except ValueError as error:  # includes UnicodeDecodeError
        raise MismatchError(
            f"{path}, line {line_number} is not a word followed by numbers ({error}). Set "
            f"--word-vectors to {FILE_DESCRIPTION}."
        ) from None
    if not found:
        raise ConfigError(
            f"{path} contains none of the {len(wanted):,} words of the vocabulary. Use another "
            f"file, or leave out --word-vectors."
        )
    return found


def _parse_line(line: str, size: int, line_number: int, path: Path) -> tuple[str, list[str]]:
    """Return the word and the `size` numbers of a line."""
    if " " not in line:
        raise ValueError("there is no space between a word and its numbers")
    word, *values = line.rsplit(" ", size)
    # Some rare GloVe words contain spaces. In the first two lines, a space in the word can only
    # mean that the vectors are longer than `size`.
    if len(values) != size or (line_number <= 2 and " " in word):
        raise MismatchError(
            f"{path}, line {line_number} has {line.count(' ')} numbers, but --embed-size is {size}."
            f" Use --embed-size {line.count(' ')}, or another file."
        )
    return word, values


@torch.no_grad()
def set_word_vectors(embedding: Tensor, vectors: dict[int, Tensor]) -> None:
    """Copy pretrained vectors into a (V, E) embedding matrix, in place.

    The vectors are first centred and scaled to the standard deviation of the matrix, because the
    decoder is initialised for that scale.

    Args:
        embedding: (V, E), any float dtype.
        vectors: token_id → (E,) float32.
    """
    token_ids = torch.tensor(list(vectors))
    values = torch.stack(list(vectors.values()))
    if len(values) > 2:  # centred, one vector would be 0, and two would be opposites
        values = values - values.mean(0)
    values *= embedding.std() / values.std().clamp(min=1e-12)
    embedding[token_ids.to(embedding.device)] = values.to(embedding)

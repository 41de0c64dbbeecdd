"""Pretrained word vectors from a text file in the format of GloVe or word2vec.

One line per word: the word, then its numbers, separated by spaces. A first line with two numbers,
as word2vec writes it, is skipped.
"""

from pathlib import Path

import torch
from torch import Tensor

from ...pipeline.stage.errors import ConfigError, MismatchError
from ...pipeline.stage.files import require_file
from ...pipeline.text.vocab import Vocab

FILE_DESCRIPTION = "a GloVe or word2vec text file"


def read_word_vectors(path: Path, vocab: Vocab, size: int) -> dict[int, Tensor]:
    """Read the vectors of the words in a vocabulary.

    Args:
        path: a UTF-8 text file.
        vocab: words, or subwords of which those that start a word are looked up.
        size: E, numbers per vector.

    Returns:
        token_id → (E,) float32, for the words found in the file.

    Raises:
        MissingArtifactError: the file does not exist.
        MismatchError: its vectors have another size, or it is not a word-vector file.
        ConfigError: it contains none of the words.
    """
    wanted = {
        word.removeprefix(" "): token_id
        for word, token_id in vocab.ids.items()
        if vocab.unit == "words" or word.startswith(" ")  # only subwords that start a word
    }
    found: dict[int, Tensor] = {}
    require_file(path, "--word-vectors", FILE_DESCRIPTION)
    number = 1
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(map(str.rstrip, lines), 1):
                is_header = number == 1 and line.count(" ") == 1
                if not line or is_header:
                    continue
                word, vector = _parse_line(line, size, number, path)
                if word in wanted:
                    found[wanted[word]] = torch.tensor([float(value) for value in vector])
                    if not found[wanted[word]].isfinite().all():
                        raise ValueError("a number is not finite")
    except ValueError as error:  # UnicodeDecodeError is one too
        raise MismatchError(
            f"{path}, line {number} is not a word and its vector ({error}). Set --word-vectors to "
            f"a GloVe or word2vec text file."
        ) from None
    if not found:
        raise ConfigError(
            f"{path} contains none of the {len(wanted):,} words of the vocabulary. Use another "
            f"file, or leave out --word-vectors."
        )
    return found


def _parse_line(line: str, size: int, number: int, path: Path) -> tuple[str, list[str]]:
    """Split a line into its word and `size` numbers; a GloVe word may itself contain spaces."""
    if " " not in line:
        raise ValueError("there is no space between a word and its numbers")
    word, *values = line.rsplit(" ", size)
    if len(values) != size or (number <= 2 and " " in word):
        raise MismatchError(
            f"{path}, line {number} has {line.count(' ')} numbers, expected {size} by "
            f"--embed-size. Use --embed-size {line.count(' ')}, or another file."
        )
    return word, values


@torch.no_grad()
def set_word_vectors(embedding: Tensor, vectors: dict[int, Tensor]) -> None:
    """Copy vectors into the (V, E) matrix, centred and scaled to its standard deviation.

    At another scale the decoder would first have to unlearn it.
    """
    token_ids = torch.tensor(list(vectors))
    values = torch.stack(list(vectors.values()))
    if len(values) > 2:  # centring one or two vectors leaves zeros, or opposites
        values = values - values.mean(0)
    values *= embedding.std() / values.std().clamp(min=1e-12)
    embedding[token_ids.to(embedding.device)] = values.to(embedding)

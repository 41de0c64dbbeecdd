import re
from pathlib import Path

import pytest
import torch

from showtell.model.decoders.word_vectors import read_word_vectors, set_word_vectors
from showtell.pipeline.stage.errors import ConfigError, MismatchError, MissingArtifactError
from showtell.pipeline.text.vocab import build_vocab

VOCAB = build_vocab(dict.fromkeys(["a", "dog", "runs", "1/2"], 1), min_count=1)
VECTORS = {"dog": [0.5, -1.0, 2.0], "cat": [1.0, 1.0, 1.0], "1/2": [0.25, 0.0, -3e-2]}


def write(path: Path, *, header: bool = False, end: str = "\n", **more: list[float]) -> Path:
    vectors = VECTORS | more
    lines = [f"{len(vectors)} 3"] if header else []
    lines += [" ".join([word, *map(str, values)]) for word, values in vectors.items()]
    path.write_text("".join(line + end for line in lines), "utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "end"),
    [(False, "\n"), (True, " \n"), (True, "\r\n")],
    ids=["GloVe", "word2vec", "r"],
)
def test_read_word_vectors_returns_vectors_of_known_words(tmp_path, header: bool, end: str) -> None:
    path = write(tmp_path / "v.txt", header=header, end=end, **{". . .": [9.0, 9.0, 9.0]})
    found = read_word_vectors(path, VOCAB, 3)
    assert {VOCAB.words[i]: v.tolist() for i, v in found.items()} == {
        word: pytest.approx(VECTORS[word]) for word in ("dog", "1/2")
    }


@pytest.mark.parametrize("header", [False, True], ids=["GloVe", "word2vec"])
@pytest.mark.parametrize("size", [2, 4])
def test_wrong_vector_size_is_refused(tmp_path, size: int, header: bool) -> None:
    path = write(tmp_path / "v.txt", header=header, end=" \n")
    line = (
        f"{path}, line {1 + header} has 3 numbers, but --embed-size is {size}. Use --embed-size 3,"
    )
    with pytest.raises(MismatchError, match=re.escape(line)):
        read_word_vectors(path, VOCAB, size)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"a 1 2 3\ndog 1 x 3\n",
            r"line 2 is not a word followed by numbers \(could not convert",
        ),
        (b"a 1 2 3\ndog 1 nan 3\n", r"line 2 is not a word followed by numbers \(a number is not"),
        (b"a 1 2 3\ndog 1 2\n", "line 2 has 2 numbers, but --embed-size is 3"),
        (b"a\t1\t2\t3\n", "line 1 is not a word followed by numbers .there is no space between"),
        (b"\xff\xfe\x00", "is not a word followed by numbers .*utf-8"),
    ],
)
def test_broken_file_is_refused(tmp_path, content: bytes, reason: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(MismatchError, match=reason):
        read_word_vectors(path, VOCAB, 3)


def test_missing_file_and_unknown_words_are_refused(tmp_path) -> None:
    for path, problem in (
        (tmp_path / "none.txt", "does not exist"),
        (tmp_path, "is a folder, not a file"),
    ):
        message = f"{path} {problem}. Give --word-vectors the path of a GloVe"
        with pytest.raises(MissingArtifactError, match=message):
            read_word_vectors(path, VOCAB, 3)
    path = tmp_path / "v.txt"
    path.write_text("Hund 1 2 3\n")
    with pytest.raises(ConfigError, match=f"{path} contains none of the 4 words"):
        read_word_vectors(path, VOCAB, 3)


def test_set_word_vectors_keeps_angles_and_the_scale_of_the_matrix() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(6, 4) * 0.1
    before, spread = embedding.clone(), embedding.std()
    vectors = {1: torch.randn(4) * 7 + 3, 4: torch.randn(4) * 7 + 3, 5: torch.randn(4) * 7 + 3}
    set_word_vectors(embedding, vectors)
    assert torch.equal(embedding[[0, 2, 3]], before[[0, 2, 3]])
    put = embedding[[1, 4, 5]]
    torch.testing.assert_close(put.std(), spread)
    torch.testing.assert_close(put.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    given = torch.stack(list(vectors.values()))
    shares = (put - put[0])[1:] / (given - given[0])[1:]  # one factor for all
    torch.testing.assert_close(shares, shares[0, 0].expand_as(shares), rtol=1e-4, atol=1e-6)


def test_blank_lines_are_skipped(tmp_path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("a 1 2 3\n\ndog 4 5 6\n\n")
    vectors = read_word_vectors(path, VOCAB, 3)
    assert vectors[VOCAB.ids["dog"]].tolist() == [4, 5, 6] and len(vectors) == 2

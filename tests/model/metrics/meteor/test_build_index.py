import gzip
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from showtell.model.metrics.meteor import build_index, stemmer
from showtell.model.metrics.meteor.build_index import CHECKSUMS_NAME, cache_folder, open_index
from showtell.model.metrics.meteor.index import hash_words
from showtell.model.metrics.meteor.lexicon import Lexicon
from showtell.pipeline.stage.errors import ScorerError, StorageError

PARAPHRASES = (("big dog", "hound"), ("big dog", "large dog"), ("dog", "hound"), ("hound", "dog"))


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A jar and paraphrases with a few words, instead of pycocoevalcap's."""
    jar, paraphrases = tmp_path / "meteor.jar", tmp_path / "paraphrase-en.gz"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("function/english.words", "the\nof\n")
        archive.writestr("synonym/english.synsets", "dog\n1 2\nhound\n2\ngoose\n7\nride\n9\n")
        archive.writestr("synonym/english.exceptions", "goose\ngeese\n")
    lines = [line for first, second in PARAPHRASES for line in ("0.5", first, second)]
    paraphrases.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    monkeypatch.setattr(build_index, "JAR", jar)
    monkeypatch.setattr(build_index, "PARAPHRASES", paraphrases)
    return jar, paraphrases


def find_paraphrases(index, phrase: str) -> list[str]:
    """The paraphrases of a phrase that are among those of `PARAPHRASES`."""
    lexicon = Lexicon(index)

    def node_of(text: str) -> int:
        words = lexicon.read([text.split()])
        found = lexicon.find_phrases(words)
        return int(found.nodes[found.lengths.argmax()])

    known = {node_of(second): second for _, second in PARAPHRASES}
    _, ranks, nodes = index.list_paraphrases(np.array([node_of(phrase)]))
    assert (np.diff(ranks) > 0).all()
    return [known[node] for node in nodes.tolist()]


def test_index_has_the_data_of_the_sources(tmp_path, sources):
    index = open_index(tmp_path / "cache")
    assert find_paraphrases(index, "big dog") == ["hound", "large dog"]  # in the order of the file
    assert find_paraphrases(index, "hound") == ["dog"]
    lexicon = Lexicon(index)
    texts, others = (
        ["the", "dogs", "geese", "rode", "riding", "unknown"],
        ["hound", "goose", "ride"],
    )
    words, other_words = lexicon.read([texts]).ids, lexicon.read([others]).ids
    assert lexicon.is_function[words].tolist() == [True, *[False] * 5]
    synonyms = lexicon.pair_synonyms(words, other_words)
    pairs = {
        (text, other)
        for text, word in zip(texts, words, strict=True)
        for other, other_word in zip(others, other_words, strict=True)
        if lexicon.pair_words(word, other_word) in synonyms
    }
    # "rode" is irregular, and this WordNet does not have it.
    assert pairs == {("dogs", "hound"), ("geese", "goose"), ("riding", "ride")}


def test_index_is_built_once(tmp_path, sources, monkeypatch):
    first = open_index(tmp_path)
    monkeypatch.setattr(build_index, "build_index", lambda: pytest.fail("built again"))
    second = open_index(tmp_path)
    for own, other in zip(vars(first).values(), vars(second).values(), strict=True):
        np.testing.assert_array_equal(own, other)
    assert isinstance(second.paraphrases, np.memmap)


def test_second_process_waits_for_the_first(tmp_path, sources, monkeypatch):
    built = []
    build = build_index.build_index

    def build_slowly():
        built.append(1)
        time.sleep(0.3)
        return build()

    monkeypatch.setattr(build_index, "build_index", build_slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(open_index, [tmp_path] * 4))
    assert len(built) == 1
    assert all(find_paraphrases(index, "dog") == ["hound"] for index in found)


def test_damaged_index_is_built_again(tmp_path, sources):
    open_index(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    for damage in (
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
    ):
        for name in ("paraphrases.npy", CHECKSUMS_NAME):
            damage(folder / name)
            assert find_paraphrases(open_index(tmp_path), "dog") == ["hound"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_missing_or_damaged_sources_are_an_error(tmp_path, sources):
    for path in reversed(sources):
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ScorerError, match="pip install --force-reinstall --no-deps pycoco"):
            open_index(tmp_path / "cache")
    sources[0].unlink()
    with pytest.raises(ScorerError, match="FileNotFoundError"):
        open_index(tmp_path / "cache")


def test_cache_that_cannot_be_written_is_an_error(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(build_index, "build_index", lambda: pytest.fail("it takes half a minute"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Set SHOWTELL_CACHE to a folder"):
        open_index(tmp_path / "file" / "cache")


def test_environment_moves_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "showtell"
    monkeypatch.setenv("SHOWTELL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_hashes_of_all_words_differ():
    words = [f"word{number}" for number in range(100_000)]
    assert len(np.unique(hash_words(words))) == len(words)


def test_later_stemmer_is_an_error(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(stemmer._stemmer, "stemWord", lambda word: word)
    with pytest.raises(ScorerError, match=r"pip install 'snowballstemmer<3'"):
        open_index(tmp_path)


def test_user_without_home_is_an_error(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SHOWTELL_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(StorageError, match="Set SHOWTELL_CACHE to a folder"):
        cache_folder()

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from showtell.pipeline.stage.errors import DamagedFileError, DatasetError, MissingArtifactError
from showtell.pipeline.text.vocab import BOS, EOS, PAD, SPECIALS, UNK, Vocab, build_vocab

CAPTIONS = [["a", "dog", "runs"], ["a", "cat"], ["a", "dog"], ["b", "cat"]]
COUNTS = Counter(word for words in CAPTIONS for word in words)


def test_vocab_orders_by_frequency_then_alphabet():
    vocab = build_vocab(COUNTS, min_count=1)
    assert vocab.words == (*SPECIALS, "a", "cat", "dog", "b", "runs")
    assert vocab.counts == (0, 0, 0, 0, 3, 2, 2, 1, 1)
    assert [vocab.words[i] for i in (PAD, BOS, EOS, UNK)] == list(SPECIALS)


def test_vocab_does_not_depend_on_the_order_of_words():
    shuffled = dict(random.Random(3).sample(list(COUNTS.items()), len(COUNTS)))
    assert list(shuffled) != list(COUNTS)
    assert build_vocab(shuffled, min_count=1) == build_vocab(COUNTS, min_count=1)


def test_vocab_keeps_words_with_min_count_or_more():
    rng = random.Random(0)
    captions = [[f"w{min(int(rng.expovariate(0.1)), 60)}" for _ in range(8)] for _ in range(200)]
    counts = Counter(word for words in captions for word in words)
    for min_count in (1, 2, 5, 50):
        expected = {word for word, count in counts.items() if count >= min_count}
        assert set(build_vocab(counts, min_count=min_count).words[4:]) == expected
    assert build_vocab(counts) == build_vocab(counts, min_count=5)
    assert len({len(build_vocab(counts, min_count=n)) for n in (1, 5, 50)}) == 3


def test_vocab_size_excludes_special_tokens():
    assert build_vocab(COUNTS, vocab_size=2).words == (*SPECIALS, "a", "cat")
    assert len(build_vocab(COUNTS, vocab_size=100)) == 9


def test_vocab_encodes_and_decodes_every_kept_word():
    vocab = build_vocab(COUNTS, min_count=2)
    for words in CAPTIONS:
        kept = [word for word in words if word in ("a", "cat", "dog")]
        assert vocab.decode(vocab.encode(kept)) == " ".join(kept)
    assert vocab.encode(["a", "zebra", "dog"]) == [4, UNK, 6]
    assert vocab.decode([UNK]) == "<unk>"


def test_vocab_decode_stops_at_eos_and_skips_pad_and_bos():
    vocab = build_vocab(COUNTS, min_count=1)
    assert vocab.decode([BOS, 4, PAD, 6, EOS, 5]) == "a dog"
    assert vocab.decode([EOS]) == vocab.decode([]) == ""


def test_vocab_encodes_text_of_special_tokens_as_unknown():
    vocab = build_vocab({"<pad>": 1, "<eos>": 2, "a": 1}, min_count=1)
    assert vocab.words == (*SPECIALS, "a")
    assert vocab.encode(["<pad>", "<bos>", "<eos>", "<unk>"]) == [UNK] * 4


def test_vocab_round_trips_through_its_file(tmp_path):
    vocab = build_vocab(COUNTS | dict.fromkeys(["naïve", "2\u00a01/2", '"', "\\"], 1), min_count=1)
    vocab.write(tmp_path / "vocab.json")
    again = Vocab.read(tmp_path / "vocab.json")
    assert again == vocab
    assert again.sha256 == vocab.sha256
    assert '"naïve": 1' in (tmp_path / "vocab.json").read_text("utf-8")


def test_vocab_sha256_depends_on_words_and_order_not_counts():
    a = Vocab((*SPECIALS, "a", "b"), (0, 0, 0, 0, 5, 4))
    assert a.sha256 == Vocab((*SPECIALS, "a", "b")).sha256
    others = [(*SPECIALS, "b", "a"), (*SPECIALS, "a"), (*SPECIALS, "ab"), (*SPECIALS, "a", "c")]
    assert len({a.sha256, *(Vocab(words).sha256 for words in others)}) == 5


def test_vocab_of_characters_writes_text_without_spaces(tmp_path):
    counts = Counter("一个红色的圆在雪地上一") + Counter(["t", "red", "circle"])
    vocab = replace(build_vocab(counts, min_count=1), word_tokenizer="characters")
    ids = vocab.encode(vocab.tokenize("一个红色的T圆，猫在雪地上 red circle。"))
    assert vocab.decode(ids) == "一 个 红 色 的 t 圆 <unk> 在 雪 地 上 red circle"
    assert vocab.to_text([*ids, EOS, 5]) == "一个红色的t圆<unk>在雪地上red circle"
    assert vocab.words_of(vocab.to_text(ids)) == vocab.decode(ids).split(" ")
    assert vocab.words_of(vocab.to_text([])) == [] and vocab.unit == "characters"
    vocab.write(tmp_path / "vocab.json")
    again = Vocab.read(tmp_path / "vocab.json")
    assert again == vocab and again.sha256 == vocab.sha256
    assert (
        json.loads((tmp_path / "vocab.json").read_text("utf-8"))["word_tokenizer"] == "characters"
    )
    others = {replace(vocab, word_tokenizer=name).sha256 for name in ("ptb", "unicode")}
    assert len({vocab.sha256, *others}) == 3


def test_vocab_of_english_words_is_written_as_before():
    vocab = Vocab((*SPECIALS, "a", "dog"), (0, 0, 0, 0, 2, 1))
    fields = ["format", "version", "specials", "words"]
    assert [*json.loads(vocab.to_bytes())] == fields
    assert hashlib.sha256(vocab.to_bytes()).hexdigest().startswith("ee9152cd428c")
    assert vocab.sha256.startswith("be57531d0a03")
    assert vocab.to_text([4, UNK, 5]) == vocab.decode([4, UNK, 5]) == "a <unk> dog"
    assert vocab.words_of("a <unk> dog") == ["a", "<unk>", "dog"] and vocab.words_of("") == []


def test_vocab_of_an_unknown_tokenizer_is_refused(tmp_path):
    vocab = replace(build_vocab(COUNTS, min_count=1), word_tokenizer="klingon")
    vocab.write(tmp_path / "vocab.json")
    with pytest.raises(DamagedFileError, match="word_tokenizer 'klingon', expected one of ptb"):
        Vocab.read(tmp_path / "vocab.json")


def test_vocab_without_frequent_words_is_refused():
    with pytest.raises(
        DatasetError, match="none of the 5 different words in train occurs at least 5 times"
    ):
        build_vocab(COUNTS)


def test_vocab_file_that_is_missing_or_invalid_is_reported(tmp_path):
    path = tmp_path / "vocab.json"
    with pytest.raises(MissingArtifactError, match=r"vocab\.json does not exist.*showtell prepare"):
        Vocab.read(path)
    Vocab((*SPECIALS, "a")).write(path)
    good = json.loads(path.read_text())
    bad = [{**good, "version": 2}, {**good, "specials": ["<s>"]}, {**good, "words": ["a"]}, {}, 3]
    bad.append({**good, "pieces": {" a": 1}})  # without a tokenizer
    for value in bad:
        path.write_text(json.dumps(value))
        with pytest.raises(DamagedFileError, match=r"vocab\.json is damaged"):
            Vocab.read(path)

"""Compares subword pieces with the encode and decode of the tokenizers library."""

import json
from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from showtell.model.config import EvalConfig, TrainConfig
from showtell.pipeline.captions import read_captions, read_images, read_references
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare, up_to_date
from showtell.pipeline.stage.errors import ConfigError, DatasetError, MissingArtifactError
from showtell.pipeline.text.ptb import tokenize
from showtell.pipeline.text.subwords import WordSplitter, read_tokenizer, train_bpe
from showtell.pipeline.text.vocab import EOS, SPECIALS, UNK, Vocab, build_piece_vocab

TEXTS = [
    "A dog's ball isn't in the water.",
    "Two dogs are running on the grass, the dogs' t-shirts are red.",
    "A skateboarder skates; skateboarding is fun!",
    "The woman cannot see the naïve café owner at 2 1/2 p.m.",
    "Señor Müller's dog runs and runs to the 日本 sign.",
    "A man runs and a woman runs, running and skating.",
]
CAPTIONS = [tokenize(text) for text in TEXTS]
COUNTS = Counter(chain.from_iterable(CAPTIONS))
LINES = [" ".join(words) for words in CAPTIONS]
UNSEEN = [
    tokenize(text) for text in ("A runner skates with the dogs", "The woman's boarder isn't red")
]
MARKERS = ("Ġ", "##", "▁", "[CLS]", "[SEP]", "[UNK]", "<unk>", "<|endoftext|>")


def save_gpt2_style(path: Path, texts: list[str] = TEXTS) -> Path:
    """Train and save a small byte-level BPE with the settings of GPT-2's tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


def save_bert_style(path: Path, texts: list[str] = TEXTS) -> Path:
    """Train and save a WordPiece with the settings of bert-base-uncased's tokenizer.json."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, show_progress=False, special_tokens=specials)
    tokenizer.train_from_iterator((text for text in texts if "日本" not in text), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    return path


def library_tokens(path: Path, line: str) -> list[str]:
    """Tokenize a caption with the library alone, and drop tokens that are only a space."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = tokenizer.encode(f" {line}", add_special_tokens=False).tokens
    return [token for token in tokens if token != "Ġ"]


def test_bpe_round_trips_captions_and_unseen_words() -> None:
    vocab = build_piece_vocab(COUNTS, train_bpe(LINES, 100))
    assert [vocab.decode(vocab.encode(words)) for words in CAPTIONS] == LINES
    new = ["skating", "skates", "skaters", "ins", "runs"]  # not merged into words in train
    ids = vocab.encode(new)
    assert "skaters" not in chain.from_iterable(CAPTIONS)
    assert UNK not in ids and vocab.decode(ids) == " ".join(new)


def test_bpe_matches_the_tokenizers_library() -> None:
    text = train_bpe(LINES, 120)
    tokenizer, splitter = Tokenizer.from_str(text), WordSplitter(text)
    for words in [*CAPTIONS, *UNSEEN]:
        ours = [piece for word in words for piece in splitter[word]]
        encoding = tokenizer.encode(" ".join(words))
        theirs = [
            token.removeprefix("##") if token.startswith("##") else f" {token}"
            for token in encoding.tokens
        ]
        assert ours == theirs
        assert "".join(ours)[1:] == tokenizer.decode(encoding.ids) == " ".join(words)


def test_bpe_is_deterministic_and_limited_to_the_requested_size() -> None:
    texts = {train_bpe(LINES, 130) for _ in range(5)}
    assert len(texts) == 1
    for num_pieces in (80, 130):
        text = train_bpe(LINES, num_pieces)
        assert len(build_piece_vocab(COUNTS, text)) <= num_pieces + len(SPECIALS)
    # With enough pieces, every word stays whole, and nothing is merged across a space.
    largest = build_piece_vocab(COUNTS, train_bpe(LINES, 1000))
    assert set(largest.words[4:]) == {f" {word}" for word in chain.from_iterable(CAPTIONS)}


def test_bpe_with_fewer_pieces_than_letters_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--vocab-size must be at least 7, the number of letters in train, got 5"
    ):
        train_bpe(["abc ca b", "da"], 5)  # a b c d start words; a b c are inside words
    train_bpe(["abc ca b", "", "da"], 7)


@pytest.mark.parametrize("save", [save_gpt2_style, save_bert_style])
def test_tokenizer_json_decodes_to_words_without_markers(tmp_path, save) -> None:
    path = save(tmp_path / "tokenizer.json")
    vocab = build_piece_vocab(COUNTS, read_tokenizer(path))
    known = 0
    for words in [*CAPTIONS, *UNSEEN]:
        ids = vocab.encode(words)
        if UNK not in ids:
            known += 1
            assert vocab.decode([*ids, EOS]) == " ".join(words)
    assert known >= len(CAPTIONS) - 1
    assert not [word for word in vocab.words[4:] for mark in MARKERS if mark in word]
    # The cuts are those of the library, except that bytes of one letter stay together.
    plain = [line for line in LINES if line.isascii()]
    assert len(plain) >= 4
    for line in plain:
        assert len(vocab.encode(line.split(" "))) == len(library_tokens(path, line))
    assert all(len(vocab.encode(words)) > len(words) for words in CAPTIONS)


def test_piece_vocab_keeps_only_pieces_of_train(tmp_path) -> None:
    path = save_gpt2_style(tmp_path / "tokenizer.json")
    splitter = WordSplitter(read_tokenizer(path))
    vocab = build_piece_vocab(Counter(chain(*CAPTIONS[:2])), read_tokenizer(path))
    counts = Counter(piece for words in CAPTIONS[:2] for word in words for piece in splitter[word])
    assert dict(zip(vocab.words[4:], vocab.counts[4:], strict=True)) == counts
    assert len(vocab) < Tokenizer.from_file(str(path)).get_vocab_size() / 2
    assert UNK in vocab.encode(["日本"])


def test_word_that_the_tokenizer_cannot_split_is_unknown(tmp_path) -> None:
    path = save_bert_style(tmp_path / "tokenizer.json")
    vocab = build_piece_vocab(COUNTS, read_tokenizer(path))
    assert vocab.encode(["日本"]) == [UNK]
    ids = vocab.encode(["a", "日本", "sign"])
    assert vocab.decode(ids) == "a <unk> sign"
    with pytest.raises(DatasetError, match="knows no word in train"):
        build_piece_vocab({"日本": 1, "人": 1}, read_tokenizer(path))


def test_piece_vocab_round_trips_without_the_tokenizer_file(tmp_path) -> None:
    tokenizer = save_gpt2_style(tmp_path / "tokenizer.json")
    vocab = build_piece_vocab(COUNTS, read_tokenizer(tokenizer))
    vocab.write(tmp_path / "vocab.json")
    tokenizer.unlink()
    again = Vocab.read(tmp_path / "vocab.json")
    assert again == vocab and again.sha256 == vocab.sha256 and again.unit == "pieces"
    assert [again.encode(words) for words in CAPTIONS] == [vocab.encode(w) for w in CAPTIONS]
    assert again.decode(again.encode(CAPTIONS[3])) == LINES[3]
    assert Vocab((*SPECIALS, "a")).sha256 != Vocab((*SPECIALS, " a"), tokenizer="{}").sha256


NO_UNKNOWN = models.WordPiece({"a": 0}, unk_token="[UNK]")  # has no such token
NOT_TOKENIZERS = (
    b"no json",
    b"\xff\xfe\x00",
    b"[1, 2]",
    b'{"words": {"a": 3}}',
    Tokenizer(NO_UNKNOWN).to_str().encode(),
    # The library's Rust code panics.
    train_bpe(["a dog runs"], 60).replace('"##"', '"####"').encode(),
)


@pytest.mark.parametrize("content", NOT_TOKENIZERS)
def test_prepare_reports_an_invalid_tokenizer_in_one_line(showtell, scenes, content) -> None:
    path = scenes / "tokenizer.json"
    path.write_bytes(content)
    before = (scenes / "scenes/captions/vocab.json").read_bytes()
    status, output = showtell("prepare", "--dataset", "scenes", "--vocab", path, "--data", scenes)
    assert status == 1 and output.startswith(f"error: {path} is not a valid tokenizer (")
    assert "Traceback" not in output and output.count("\n") == 1
    assert (scenes / "scenes/captions/vocab.json").read_bytes() == before


def test_prepare_with_a_missing_tokenizer_leaves_no_folder(tmp_path) -> None:
    config = PrepareConfig(
        data=tmp_path / "data", dataset="scenes", vocab=str(tmp_path / "nosuch.json")
    )
    (tmp_path / "data/scenes/raw").mkdir(parents=True)
    (tmp_path / "data/scenes/raw/captions.csv").write_text("file_name,caption\n")
    with pytest.raises(MissingArtifactError, match=r"nosuch\.json does not exist\. Give --vocab"):
        prepare(config)
    assert not config.captions_dir.exists()


def scene_lines(data: Path) -> list[str]:
    path = data / "scenes/captions"
    train_ids = read_images(path / "images.parquet").select("train")
    references = read_references(path / "captions.parquet", "words", train_ids)
    return list(chain.from_iterable(references.values()))


def prepare_scenes(data: Path, kind: str) -> PrepareConfig:
    save = {"gpt2": save_gpt2_style, "bert": save_bert_style}
    if kind in save:
        path = save[kind](data / f"{kind}.json", scene_lines(data))
        config = PrepareConfig(data=data, dataset="scenes", vocab=str(path))
    else:
        config = PrepareConfig(data=data, dataset="scenes", vocab=kind, vocab_size=80)
    prepare(config)
    return config


def test_prepare_with_bpe_round_trips_train_captions(scenes) -> None:
    config = PrepareConfig(data=scenes, dataset="scenes", vocab="bpe", vocab_size=60)
    manifest = prepare(config)
    vocab = Vocab.read(config.captions_dir / "vocab.json")
    train_ids = read_images(config.captions_dir / "images.parquet").select("train")
    encoded = read_captions(config.captions_dir / "captions.parquet").select(train_ids)
    words = scene_lines(scenes)
    spelt = [vocab.decode(encoded.tokens[a:b]) for a, b in pairwise(encoded.offsets)]
    assert spelt == words and manifest.details["oov"]["train"] == 0
    # Counts are of pieces in train, and some words are split.
    assert sum(vocab.counts) == manifest.counts["num_train_tokens"] == len(encoded.tokens)
    assert Counter(encoded.tokens.tolist()) == dict(enumerate(vocab.counts[4:], start=4))
    assert len(encoded.tokens) > sum(len(line.split(" ")) for line in words)
    assert up_to_date(config) is not None
    assert up_to_date(replace(config, vocab_size=61)) is None


def test_prepare_bpe_defaults_to_4000_pieces(scenes) -> None:
    config = PrepareConfig(data=scenes, dataset="scenes", vocab="bpe")
    prepare(config)
    assert up_to_date(replace(config, vocab_size=4000)) is not None


def test_prepare_runs_again_with_a_changed_tokenizer(scenes) -> None:
    config = prepare_scenes(scenes, "gpt2")
    assert up_to_date(config) is not None
    save_bert_style(Path(config.vocab))
    assert up_to_date(config) is None


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "bert"])
def test_run_with_pieces_generates_captions_without_markers(
    scenes, scorers, amplify_image, kind
) -> None:
    from showtell.model import evaluate as evaluate_stage
    from showtell.model.runs.run import load_run
    from showtell.model.train import train

    config = prepare_scenes(scenes, kind)
    sizes = {"hidden_size": 48, "embed_size": 48, "batch_size": 16, "epochs": 6, "dropout": 0.0}
    train(TrainConfig(data=scenes, dataset="scenes", run="r", learning_rate=2e-2, **sizes))
    amplify_image(scenes, 20.0)
    evaluate_stage.evaluate(EvalConfig(data=scenes, run="r", split="train", max_length=60))
    entries = json.loads((scenes / "runs/r/eval/train-beam3-max60/captions.json").read_text())
    captions = [entry["caption"] for entry in entries]
    for caption in captions:
        assert caption == " ".join(caption.split()).lower() != ""
        assert not [mark for mark in MARKERS if mark in caption]
    # Words of several pieces are generated, even without the tokenizer's file.
    if config.vocab_file is not None:
        config.vocab_file.unlink()
    _, vocab, _ = load_run(scenes / "runs/r", torch.device("cpu"))
    known = {word for line in scene_lines(scenes) for word in line.split(" ")}
    written = {word for caption in captions for word in caption.split(" ")} & known
    assert [word for word in written if len(vocab.encode([word])) > 1]

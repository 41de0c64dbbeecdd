import string
from collections import Counter

import pytest

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.train import train
from showtell.pipeline.text.subwords import train_bpe
from showtell.pipeline.text.vocab import Vocab, build_piece_vocab
from showtell.serving.config import ReportConfig
from showtell.serving.report import collect as collect_module
from showtell.serving.report.collect import collect


def test_confidence_is_the_mean_of_words_and_end(soft_report) -> None:
    for image in soft_report.images:
        assert image.num_tokens == len(image.tokens) == len(image.caption.split()) + 1
        mean = sum(token.log_prob for token in image.tokens) / len(image.tokens)
        assert image.confidence == pytest.approx(mean)


def test_confidence_is_the_mean_of_pieces_and_end(evaluated_runs, soft_report, monkeypatch) -> None:
    captions = [image.caption for image in soft_report.images]
    words = Counter(word for caption in captions for word in caption.split())
    vocab = build_piece_vocab(words, train_bpe([string.ascii_lowercase], 26))
    # The log-probabilities are those of nbest.json.
    monkeypatch.setattr(Vocab, "read", lambda _: vocab)
    monkeypatch.setattr(collect_module, "score_tokens", lambda *_: {})
    report = collect(ReportConfig(data=evaluated_runs, evaluation="soft", image_size=0))
    for image in report.images:
        num_pieces = len(vocab.encode(image.caption.split()))
        assert num_pieces == len(image.caption.replace(" ", ""))  # each letter is a piece
        assert image.confidence == pytest.approx(image.ranked[0].log_prob / (num_pieces + 1))


def test_attention_of_a_transformer_is_shown_though_its_option_attention_is_none(data) -> None:
    sizes = {"hidden_size": 32, "embed_size": 32, "num_layers": 2, "epochs": 1}
    train(TrainConfig(data=data, dataset="scenes", run="t", cell="transformer", **sizes))
    evaluate(EvalConfig(data=data, run=["plain", "t"], num_samples=0))
    report = collect(ReportConfig(data=data, evaluation="plain+t", image_size=0))
    assert report.grid == (2, 2) and all(token.attention for token in report.images[0].tokens)
    assert report.runs["t"].decoder.description == "Transformer, 2 layers of 32 units"

import numpy as np
import pytest

from showtell.model.generation.hypothesis import Hypothesis
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.text.vocab import SPECIALS, Vocab
from showtell.serving.results import Caption, Token
from showtell.serving.stream import caption_stream


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_stream_captions_like_the_captioner(captioner, image_paths, batch_size: int) -> None:
    paths = [str(path) for path in image_paths[:7]]
    options = {"beam": 4, "n_best": 2}
    batches = list(
        caption_stream(captioner, paths, DecodingOptions(**options), batch_size=batch_size)
    )
    assert [len(batch) for batch in batches][:-1] == [batch_size] * (len(batches) - 1)
    found = [image for batch in batches for image in batch]
    assert [image.path for image in found] == paths
    expected = captioner.caption(paths, details=True, **options)
    for image, captions in zip(found, expected, strict=True):
        assert [caption.text for caption in image.captions] == [c.text for c in captions]
        for caption, other in zip(image.captions, captions, strict=True):
            assert caption.log_prob == pytest.approx(other.log_prob, abs=1e-3)
            assert caption.word_probs == pytest.approx(other.word_probs, abs=1e-3)


def test_unreadable_images_keep_their_place(captioner, image_paths, tmp_path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    paths = [str(broken), str(image_paths[0]), str(tmp_path / "gone.jpg"), str(tmp_path)]
    for batch_size in (1, 4):
        options = DecodingOptions(beam=1)
        batches = caption_stream(captioner, paths, options, batch_size=batch_size)
        found = [image for batch in batches for image in batch]
        assert str(found[0].error).startswith(f"{broken} is not a readable image: not an image")
        assert [image.error for image in found[1:]] == [
            None,
            f"{tmp_path / 'gone.jpg'} does not exist.",
            f"{tmp_path} cannot be read: Is a directory.",
        ]
        assert [len(image.captions) for image in found] == [0, 1, 0, 0]


def test_no_images_give_no_batches(captioner) -> None:
    assert list(caption_stream(captioner, [], DecodingOptions())) == []


def test_word_probs_are_those_of_the_words(captioner, image_paths) -> None:
    for [caption] in captioner.caption(image_paths[:5], details=True):
        probs = caption.word_probs
        assert len(probs) == len(caption.text.split(" "))
        assert all(0 < prob <= 1 for prob in probs)
        assert probs == pytest.approx([2.718281828**t.log_prob for t in caption.tokens[:-1]])


def test_word_probs_of_subwords_are_products() -> None:
    pieces = (" sun", "flow", "er", " in", "<unk>", " s", "un", "")
    tokens = tuple(Token(piece, -1.0) for piece in pieces)
    probs = Caption("sunflower in <unk> sun", -8.0, -8.0, tokens).word_probs
    assert probs == pytest.approx([2.718281828**-n for n in (3, 1, 1, 2)])
    assert Caption("", -1.0, -1.0, (Token("", -1.0),)).word_probs == []


def test_word_probs_of_chinese_are_those_of_the_characters() -> None:
    vocab = Vocab((*SPECIALS, *"一个圆", "t"), word_tokenizer="characters")
    log_probs = np.array([-1, -2, -3, -4, 0], np.float32)
    caption = Caption.of(Hypothesis((4, 5, 7, 6), -10.0, -10.0), vocab, log_probs)
    assert caption.text == str(caption) == "一个t圆" and caption.words == (*"一个t圆",)
    assert caption.word_probs == pytest.approx([2.718281828**-n for n in (1, 2, 3, 4)])

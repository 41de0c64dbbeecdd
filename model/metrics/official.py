"""The official scores of `showtell eval`: pycocoevalcap's BLEU, METEOR, ROUGE_L and CIDEr.

pycocoevalcap's Python code is called as it is. Its two Java programs run with the same options on
the same text, but not through its wrappers: METEOR's wrapper never reads the program's stderr and
hangs once that pipe is full, and the tokenizer's writes into site-packages.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from ...pipeline.stage.errors import DatasetError
from .bleu import BLEU_NAMES
from .caption_scorer import CaptionScorer, require_references, require_same_images
from .image_scores import ImageScores
from .meteor import TIMEOUT_S, Meteor, read_meteor_counts
from .metric import Floats
from .ptb_tokenizer import tokenize_references, tokenize_with_java


@dataclass(frozen=True)
class OfficialScores:
    """pycocoevalcap's scores of N captions.

    Attributes:
        scores: `Bleu_1` … `Bleu_4`, `METEOR`, `ROUGE_L`, `CIDEr`, as fractions.
        images: the scores and counts of each image.
        references: image_id → tokenized references, words joined by single spaces.
        hypotheses: image_id → tokenized caption, words joined by single spaces.
    """

    scores: dict[str, float]
    images: ImageScores
    references: dict[int, list[str]]
    hypotheses: dict[int, str]


class OfficialScorer:
    """Score captions; Java starts and the references are tokenized in the background.

    Example:
        with OfficialScorer(references) as scorer:
            hypotheses = decode(images)  # meanwhile METEOR loads its paraphrases
            scores = scorer.score(hypotheses)
    """

    def __init__(
        self, references: Mapping[int, Sequence[str]], timeout_s: float = TIMEOUT_S
    ) -> None:
        """Take the references; the programs start with the `with` block.

        Args:
            references: image_id → at least one caption, as people wrote it.
            timeout_s: how long Java may take for one answer.

        Raises:
            DatasetError: there is no image, or one without a reference.
        """
        require_references(references)
        self.references = references
        self.timeout_s = timeout_s

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # METEOR is entered last, so that after an error it is killed before the pool waits.
            self._pool = stack.enter_context(ThreadPoolExecutor(1))
            self._meteor = stack.enter_context(Meteor(self.timeout_s))
            self._tokenized: Future[dict[int, list[str]]] = self._pool.submit(
                tokenize_references, self.references, self.timeout_s
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def score(self, hypotheses: Mapping[int, str]) -> OfficialScores:
        """Score one caption for each image of the references.

        Args:
            hypotheses: image_id → caption, for exactly the images of the references; any order.

        Raises:
            MismatchError: an image has no caption, or a caption has no references.
            DatasetError: no reference contains a word.
            ScorerError: Java is missing, died, or exceeded the time limit.
        """
        require_same_images(self.references, hypotheses)
        image_ids = list(self.references)
        raw = [hypotheses[image_id] for image_id in image_ids]
        captions = [" ".join(words) for words in tokenize_with_java(raw, self.timeout_s)]
        tokenized = dict(zip(image_ids, captions, strict=True))
        references = self._tokenized.result()
        if not any(text.split() for text in chain.from_iterable(references.values())):
            raise DatasetError("The references contain no words after tokenization.")

        in_java = self._pool.submit(self._score_meteor, [*references.values()], captions)
        single = {image_id: [text] for image_id, text in tokenized.items()}
        bleu, _ = Bleu(len(BLEU_NAMES)).compute_score(references, single, verbose=0)
        rouge_l, rouge_l_each = Rouge().compute_score(references, single)
        cider, cider_each = Cider().compute_score(references, single)
        bleu_counts = CaptionScorer(references).score_each(tokenized).bleu
        meteor, meteor_counts = in_java.result()

        names = (*BLEU_NAMES, "METEOR", "ROUGE_L", "CIDEr")
        scores = map(float, (*bleu, meteor, rouge_l, cider))
        means = {"ROUGE_L": np.array(rouge_l_each), "CIDEr": np.array(cider_each)}
        return OfficialScores(
            scores=dict(zip(names, scores, strict=True)),
            images=ImageScores(np.array(image_ids), bleu_counts, meteor_counts, means),
            references=references,
            hypotheses=tokenized,
        )

    def _score_meteor(
        self, references: list[list[str]], captions: list[str]
    ) -> tuple[float, Floats]:
        lines = self._meteor.count(references, captions)
        return self._meteor.score(lines)[0], read_meteor_counts(lines)

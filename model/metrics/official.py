"""The official scores: pycocoevalcap's scorers, with Java run in a way that does not hang.

Its BLEU, ROUGE_L and CIDEr are called as they are. Its two Java programs run from its own jars,
with the same options on the same text, but not through its wrappers: one writes into site-packages,
the other never reads METEOR's stderr and hangs once that pipe is full; both want `java` on PATH.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor import meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from ...pipeline.stage.errors import DatasetError, ScorerError
from .caption_scorer import BLEU_NAMES, CaptionScorer, require_references, require_same_images
from .java import JavaProcess, find_java, run_java
from .meteor import read_meteor_counts
from .per_image import ImageScores

__all__ = ["OfficialScorer", "OfficialScores", "find_java", "score_official", "tokenize_with_java"]

METEOR_JAR = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
SPICE_DIR = METEOR_JAR.parents[1] / "spice"
TOKENIZER_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))  # all that Java knows
TIMEOUT_S = 300.0  # METEOR loads 60 MB of paraphrases before its first answer


@dataclass(frozen=True)
class OfficialScores:
    """What pycocoevalcap says of N captions.

    Attributes:
        scores: `Bleu_1` … `Bleu_4`, `METEOR`, `ROUGE_L`, `CIDEr`, as fractions.
        per_image: the same names → (N,) float64, in the order of `image_ids`.
        image_ids: the images scored.
        images: what each image contributes to the scores.
        references: image_id → references as tokenized, words joined by single spaces.
        hypotheses: image_id → caption likewise.
    """

    scores: dict[str, float]
    per_image: dict[str, NDArray[np.float64]]
    image_ids: tuple[int, ...]
    images: ImageScores
    references: dict[int, list[str]]
    hypotheses: dict[int, str]


def score_official(
    references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str]
) -> OfficialScores:
    """Score captions as `OfficialScorer` does, where nothing else is to be done meanwhile."""
    with OfficialScorer(references) as scorer:
        return scorer.score(hypotheses)


class OfficialScorer:
    """Scores captions; its Java starts, and the references are tokenized, while others work.

    Example:
        with OfficialScorer(references) as scorer:
            hypotheses = decode(images)  # METEOR loads its paraphrases meanwhile
            scores = scorer.score(hypotheses)
    """

    def __init__(
        self, references: Mapping[int, Sequence[str]], timeout_s: float = TIMEOUT_S
    ) -> None:
        """Take the references; nothing starts before `with`.

        Args:
            references: image_id → at least one caption, as written by people.
            timeout_s: how long Java may take for one answer.

        Raises:
            DatasetError: there is no image, or one without a reference.
        """
        require_references(references)
        self.references = references
        self.timeout_s = timeout_s

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # METEOR is entered last and so ended first: nothing waits for it after an error.
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
            MismatchError: an image without a caption, or a caption without references.
            DatasetError: no reference has a word.
            ScorerError: Java is missing, died, or did not answer in time.
        """
        require_same_images(self.references, hypotheses)
        image_ids = tuple(self.references)
        raw = [hypotheses[image_id] for image_id in image_ids]
        captions = [" ".join(words) for words in tokenize_with_java(raw, self.timeout_s)]
        gts = self._tokenized.result()
        if not any(text.split() for text in chain.from_iterable(gts.values())):
            raise DatasetError("no reference has a word after tokenization, expected some.")
        in_java = self._pool.submit(self._meteor.score, [*gts.values()], captions)
        res = {image_id: [text] for image_id, text in zip(image_ids, captions, strict=True)}
        bleu, bleu_each = Bleu(len(BLEU_NAMES)).compute_score(gts, res, verbose=0)
        rouge_l, rouge_l_each = Rouge().compute_score(gts, res)
        cider, cider_each = Cider().compute_score(gts, res)
        counts = CaptionScorer(gts).score_each(dict(zip(image_ids, captions, strict=True))).bleu
        meteor_score, meteor_each, statistics = in_java.result()
        names = (*BLEU_NAMES, "METEOR", "ROUGE_L", "CIDEr")
        scores = (*bleu, meteor_score, rouge_l, cider)
        each = (*bleu_each, meteor_each, rouge_l_each, cider_each)
        per_image = {name: np.array(values) for name, values in zip(names, each, strict=True)}
        means = {name: per_image[name] for name in ("ROUGE_L", "CIDEr")}
        return OfficialScores(
            scores={name: float(score) for name, score in zip(names, scores, strict=True)},
            per_image=per_image,
            image_ids=image_ids,
            images=ImageScores(np.array(image_ids), counts, read_meteor_counts(statistics), means),
            references=gts,
            hypotheses=dict(zip(image_ids, captions, strict=True)),
        )


class Meteor(JavaProcess):
    """METEOR 1.5, started once for any number of captions."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        arguments = ("-jar", METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm")
        super().__init__("METEOR", arguments, timeout_s)

    def score(
        self, references: Sequence[Sequence[str]], hypotheses: Sequence[str]
    ) -> tuple[float, list[float], list[str]]:
        """Score N captions.

        Args:
            references: N lists of captions, as words joined by single spaces.
            hypotheses: N captions likewise.

        Returns:
            score: METEOR of all captions together, 0 to 1.
            scores: METEOR of each of the N captions.
            statistics: the N lines of counts behind them.

        Raises:
            ScorerError: the program died, or was silent for too long.
        """
        questions = [
            " ||| ".join(("SCORE", *map(_without_bars, captions), _without_bars(hypothesis)))
            for captions, hypothesis in zip(references, hypotheses, strict=True)
        ]
        statistics = self.ask(questions, len(questions))
        return *self.sum_up(statistics), statistics

    def sum_up(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        """The scores that N captions of these counts have: of all together, and of each."""
        question = " ||| ".join(("EVAL", *statistics))
        *scores, score = self.ask([question], len(statistics) + 1)
        return float(score), [float(value) for value in scores]


def tokenize_with_java(captions: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[list[str]]:
    """Split captions into lower-case words without punctuation, as pycocoevalcap's PTBTokenizer.

    Args:
        captions: N captions, as written by people; a line break inside one counts as a space.
        timeout_s: how long Java may take.

    Returns:
        The words of each caption, N lists.

    Raises:
        ScorerError: Java is missing, failed, or did not end in time.
    """
    name, program = "the PTB tokenizer", "edu.stanford.nlp.process.PTBTokenizer"
    arguments = ("-cp", TOKENIZER_JAR, program, "-preserveLines", "-lowerCase")
    text = "".join(f"{caption.translate(LINE_BREAKS)}\n" for caption in captions)
    lines = run_java(name, arguments, text, timeout_s).split("\n")[:-1]
    if len(lines) != len(captions):
        raise ScorerError(f"{name} wrote {len(lines)} lines for {len(captions)} captions.")
    dropped = {"", *ptbtokenizer.PUNCTUATIONS}
    return [[word for word in line.rstrip().split(" ") if word not in dropped] for line in lines]


def tokenize_references(
    references: Mapping[int, Sequence[str]], timeout_s: float = TIMEOUT_S
) -> dict[int, list[str]]:
    """Tokenize the captions of each image: image_id → captions as words joined by spaces."""
    tokens = iter(tokenize_with_java([*chain.from_iterable(references.values())], timeout_s))
    return {
        image_id: [" ".join(words) for words in islice(tokens, len(captions))]
        for image_id, captions in references.items()
    }


def _without_bars(caption: str) -> str:
    """The caption without METEOR's separator, as pycocoevalcap removes it from hypotheses."""
    return caption.replace("|||", "").replace("  ", " ")

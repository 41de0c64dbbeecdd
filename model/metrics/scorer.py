"""Score captions as pycocoevalcap does: BLEU-1 to 4, METEOR, ROUGE_L and CIDEr.

`score_captions` takes captions as people write them; `caption_scorer.py` takes tokenized ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from ...pipeline.stage.errors import DatasetError
from ...pipeline.text.columns import tokenize_texts
from ...pipeline.text.tokenizer import DEFAULT_TOKENIZER
from .caption_scorer import CaptionScorer, require_references, require_same_images
from .image_scores import ImageScores
from .meteor.meteor import Meteor


@dataclass(frozen=True)
class ScoredCaptions:
    """The scores of N captions. All mappings have the images in the order of the references.

    Attributes:
        images: the scores of each image; `images.of_all()` returns those of all together.
        references: image_id → tokenized references, as words joined by single spaces.
        hypotheses: image_id → tokenized caption, as words joined by single spaces.
    """

    images: ImageScores
    references: dict[int, list[str]]
    hypotheses: dict[int, str]


def score_captions(
    references: Mapping[int, Sequence[str]],
    hypotheses: Mapping[int, str],
    tokenizer: str = DEFAULT_TOKENIZER,
) -> ScoredCaptions:
    """Score one caption for each image of the references.

    Args:
        references: image_id → at least one caption, as people wrote it.
        hypotheses: image_id → caption, for exactly the images of the references; any order.
        tokenizer: name of the tokenizer, see `pipeline/text/tokenizer.py`. METEOR is left out with
            others than "ptb", because its stemmer, synonyms and paraphrases are English.

    Raises:
        MismatchError: an image has no caption, or a caption has no references.
        DatasetError: there is no image, an image has no reference, or no reference has a word.
        ScorerError: METEOR's synonyms and paraphrases cannot be read.
        StorageError: the cache folder, which keeps them, cannot be written.
    """
    require_references(references)
    require_same_images(references, hypotheses)
    texts = [*chain.from_iterable(references.values()), *(hypotheses[i] for i in references)]
    words = iter(tokenize_texts(texts, tokenizer))
    tokenized = {i: list(islice(words, len(captions))) for i, captions in references.items()}
    captions = dict(zip(references, words, strict=True))
    if not any(chain.from_iterable(tokenized.values())):
        raise DatasetError("The references contain no words after tokenization.")
    scores = CaptionScorer(tokenized).score_each(captions)
    counts = None
    if tokenizer == DEFAULT_TOKENIZER:
        counts = Meteor([*tokenized.values()]).count([*captions.values()])
    means = {"ROUGE_L": scores.rouge_l, "CIDEr": scores.cider}
    images = ImageScores(scores.image_ids, scores.bleu, counts, means)
    return ScoredCaptions(images, tokenized, captions)

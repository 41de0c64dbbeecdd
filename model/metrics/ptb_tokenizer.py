"""Tokenize captions with the Penn Treebank tokenizer, as all published scores do.

The program is Stanford's, from pycocoevalcap's jar; pycocoevalcap's own wrapper would write into
site-packages and needs `java` on PATH.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from ...pipeline.stage.errors import ScorerError
from .java import run_java

TOKENIZER_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))  # all that Java splits at
TIMEOUT_S = 300.0


def tokenize_with_java(captions: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[list[str]]:
    """Split captions into lower-case words without punctuation, as pycocoevalcap's PTBTokenizer.

    Args:
        captions: N captions, as people write them; a line break counts as a space.
        timeout_s: how long Java may take.

    Returns:
        The words of each caption, N lists.

    Raises:
        ScorerError: Java is missing, failed, or exceeded the time limit.
    """
    name, program = "The PTB tokenizer", "edu.stanford.nlp.process.PTBTokenizer"
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

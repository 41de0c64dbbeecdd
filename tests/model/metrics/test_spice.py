import sys
from pathlib import Path

import pytest

from showtell.model.metrics import java
from showtell.model.metrics.spice import PARSER_JARS, explain_absence, score_spice
from showtell.pipeline.stage.errors import ScorerError

REFERENCES = {7: ["a dog runs", "the dog is running"], 3: ["a cat sits"]}
HYPOTHESES = {3: "a cat", 7: "dogs"}

# Answers in another order than asked, with what it was given: image 7 scores 0.2, 3 scores 0.1.
ANSWER = """
import json, pathlib
asked = json.load(open(sys.argv[-4]))
scored = [
    {"image_id": e["image_id"], "scores": {"All": {"f": len(e["refs"]) / 10, "pr": 1.0}}}
    for e in reversed(asked)
]
assert {e["image_id"]: e["test"] for e in asked} == {7: "dogs", 3: "a cat"}, asked
assert "-silent" in sys.argv and sys.argv[sys.argv.index("-jar") + 1].endswith("spice-1.0.jar")
json.dump(scored, open(sys.argv[-2], "w"))
"""


@pytest.fixture
def use_java(monkeypatch, tmp_path):
    """Put a `java` of our own on PATH: a Python program that gets the real one's arguments."""

    def use(program: str, version: str = '"1.8.0_292"') -> None:
        script, path = tmp_path / "java.py", tmp_path / "java"
        head = "import sys\nif '-version' in sys.argv:\n"
        head += f"    print('openjdk version {version}', file=sys.stderr); sys.exit()\n"
        script.write_text(head + program)
        path.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' \"$@\"\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        java.java_version.cache_clear()

    yield use
    java.java_version.cache_clear()


def test_scores_are_read_by_image(use_java, tmp_path) -> None:
    use_java(ANSWER)
    assert score_spice(REFERENCES, HYPOTHESES, tmp_path).tolist() == [0.2, 0.1]


@pytest.mark.parametrize(
    "program", ["", "open(sys.argv[-2], 'w').write('[')", "open(sys.argv[-2], 'w').write('[]')"]
)
def test_answer_without_every_image_is_an_error(use_java, tmp_path, program: str) -> None:
    use_java(program)
    with pytest.raises(ScorerError, match="SPICE ended without a score for each of 2 images"):
        score_spice(REFERENCES, HYPOTHESES, tmp_path)


def test_hanging_java_is_ended(use_java, tmp_path) -> None:
    use_java("import time; time.sleep(600)")
    with pytest.raises(ScorerError, match=r"SPICE did not end within 0.2 s"):
        score_spice(REFERENCES, HYPOTHESES, tmp_path, timeout_s=0.2)


def test_absence_says_what_is_missing_and_how_to_get_it(use_java, tmp_path) -> None:
    use_java("")
    assert "Fetch it with: python -c" in explain_absence(tmp_path)
    (tmp_path / "lib").mkdir()
    for name in PARSER_JARS:
        (tmp_path / "lib" / name).touch()
    assert explain_absence(tmp_path) == ""
    use_java("", version='"25.0.2" 2026-01-20')
    assert "it needs Java 8 to 14, this is Java 25" in explain_absence(tmp_path)


def test_spice_runs_nothing_where_its_parser_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(java, "find_java", lambda: pytest.fail("asked for Java"))
    assert explain_absence(Path("nowhere"))

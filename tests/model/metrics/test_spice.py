import sys
from pathlib import Path

import pytest

from showtell.model.metrics import java
from showtell.model.metrics.metric import CaptionSet
from showtell.model.metrics.spice import PARSER_JARS, Spice
from showtell.pipeline.stage.errors import ScorerError

CAPTIONS = CaptionSet(
    hypotheses={7: "Dogs!", 3: "A cat."},
    tokenized_hypotheses={7: "dogs", 3: "a cat"},
    tokenized_references={7: ["a dog runs", "the dog is running"], 3: ["a cat sits"]},
    captions_dir=Path("captions"),
)

# Answers in reverse order; the score is a tenth of the number of references.
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
    """Put a fake `java` on PATH: a Python program that gets the real one's arguments."""

    def use(program: str, version: str = '"1.8.0_292"') -> None:
        script, path = tmp_path / "java.py", tmp_path / "java"
        head = "import sys\nif '-version' in sys.argv:\n"
        head += f"    print('openjdk version {version}', file=sys.stderr); sys.exit()\n"
        script.write_text(head + program)
        path.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' \"$@\"\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        java._show_version.cache_clear()

    yield use
    java._show_version.cache_clear()


def test_scores_are_assigned_by_image_id(use_java, tmp_path) -> None:
    use_java(ANSWER)
    assert Spice(tmp_path).score(CAPTIONS).tolist() == [0.2, 0.1]


@pytest.mark.parametrize(
    "program", ["", "open(sys.argv[-2], 'w').write('[')", "open(sys.argv[-2], 'w').write('[]')"]
)
def test_answer_without_every_image_is_an_error(use_java, tmp_path, program: str) -> None:
    use_java(program)
    with pytest.raises(ScorerError, match="SPICE did not return a score for each of 2 images"):
        Spice(tmp_path).score(CAPTIONS)


def test_java_is_killed_after_the_time_limit(use_java, tmp_path) -> None:
    use_java("import time; time.sleep(600)")
    with pytest.raises(ScorerError, match=r"SPICE did not finish within 0.2 s"):
        Spice(tmp_path, timeout_s=0.2).score(CAPTIONS)


def test_absence_is_explained_with_the_command_that_ends_it(
    use_java, tmp_path, monkeypatch
) -> None:
    use_java("")
    spice = Spice(tmp_path)
    assert "Fetch it with: python -c" in spice.explain_absence()
    with pytest.raises(ScorerError, match=r"SPICE cannot be computed: its parser is not in"):
        spice.inputs()
    (tmp_path / "lib").mkdir()
    for name in PARSER_JARS:
        (tmp_path / "lib" / name).touch()
    assert spice.explain_absence() == ""
    assert spice.inputs() == {"spice": " ".join(PARSER_JARS)}
    use_java("", version='"25.0.2" 2026-01-20')
    assert "it needs Java 8 to 14, but 'java' is version 25" in spice.explain_absence()
    monkeypatch.setenv("PATH", "")
    assert "it needs Java 8 to 14, but PATH has no 'java'" in spice.explain_absence()


def test_java_is_not_started_if_the_parser_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(java, "find_java", lambda: pytest.fail("asked for Java"))
    assert Spice(Path("nowhere")).explain_absence()

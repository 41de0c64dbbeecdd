import random

import pytest

from showtell.model.metrics.java import java_command, java_environment
from showtell.model.metrics.meteor.build_index import METEOR_DIR
from showtell.model.metrics.meteor.normalize import normalize, remove_separator
from showtell.pipeline.stage.signals import run_program

ALPHABETS = (
    "ab1s.,'`- \"_",
    "ab.1 -'",
    "aé1.,'- ½²Ω中",
    "a1.'-“”‘’–—…€£",
    "aß٣१. ,'-ıſª",
    "abàéšžж. '-",
    "vs ieg.pp5",
)


def draw_text(rng: random.Random, alphabet: str) -> str:
    return " ".join("".join(rng.choices(alphabet, k=rng.randint(1, 14))).split())


def normalize_with_java(folder, captions: list[str]) -> list[str]:
    """Return the captions as the Java program splits them; it writes them with its alignments."""
    (folder / "captions").write_text("".join(f"{text}\n" for text in captions), "utf-8")
    (folder / "references").write_text("z\n" * len(captions))
    files = [str(folder / name) for name in ("captions", "references")]
    options = ("-l", "en", "-norm", "-m", "exact", "-writeAlignments", "-f", folder / "out")
    command = java_command(["-jar", METEOR_DIR / "meteor-1.5.jar", *files, *options])
    run_program(command, 60, env=java_environment()).check_returncode()
    blocks = (folder / "out-align.out").read_text("utf-8").split("Alignment\t")[1:]
    return [block.split("\n")[1] for block in blocks]


def test_words_equal_the_java_programs(tmp_path):
    rng = random.Random(0)
    texts = [draw_text(rng, alphabet) for alphabet in ALPHABETS for _ in range(3000)]
    captions = [text for text in texts if any(letter.isalnum() for letter in text)]
    expected = normalize_with_java(tmp_path, captions)
    assert len(expected) == len(captions) > 18_000
    wrong = {
        text: words
        for text, words in zip(captions, expected, strict=True)
        if " ".join(normalize(text)) != words
    }
    assert not wrong


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", []),
        ("a man 's t-shirt", ["a", "man", "'", "s", "t", "shirt"]),
        ("build-a-bear", ["build", "a-bear"]),
        ("the u.s. at 5 p.m.", ["the", "us", "at", "5", "pm"]),
    ],
)
def test_words_of_captions(caption, words):
    assert normalize(caption) == words


def test_separator_of_the_program_is_removed():
    assert remove_separator("a ||| b") == "a b"

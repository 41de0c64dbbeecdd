import gzip
import shutil
from itertools import islice

import pytest

from showtell.model.metrics.meteor.build_index import METEOR_DIR
from showtell.model.metrics.meteor.java import JavaMeteor
from showtell.pipeline.stage.errors import ScorerError


def test_program_runs_in_a_folder_with_spaces_and_accents(tmp_path):
    ignore = shutil.ignore_patterns("paraphrase-en.gz")
    folder = shutil.copytree(METEOR_DIR, tmp_path / "my show-tell é", ignore=ignore)
    # Few paraphrases: reading all of them takes seconds.
    with (
        gzip.open(METEOR_DIR / "data/paraphrase-en.gz", "rt", encoding="utf-8") as all_lines,
        gzip.open(folder / "data/paraphrase-en.gz", "wt", encoding="utf-8") as lines,
    ):
        lines.writelines(islice(all_lines, 3000))
    with JavaMeteor(folder=folder) as java:
        (line,) = java.count([["a little puppy is running"]], ["a small dog runs"])
    assert len(line.split()) == 23


def test_killed_program_is_an_error():
    with JavaMeteor() as java:
        java._process.kill()
        for _ in range(2):  # the second question does not wait either
            with pytest.raises(ScorerError, match=r"METEOR ended with exit code -9, after 0 of 1"):
                java.count([["a dog"]], ["a dog"])


def test_program_is_killed_by_an_error_in_the_block():
    with pytest.raises(ZeroDivisionError), JavaMeteor() as java:
        process = java._process
        raise ZeroDivisionError
    assert process.returncode is not None

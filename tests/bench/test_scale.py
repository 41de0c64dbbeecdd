import random
from pathlib import Path

import pytest

from showtell.bench import scale
from showtell.bench.scale import DATASETS, MACHINES, features_seconds, resident_bytes, simulate

COCO, CC12M, LAION = DATASETS
TWO_CORES, H200 = MACHINES
DOCS = Path(__file__).parents[2] / "docs" / "scale.md"


def test_tables_of_the_docs_are_those_of_the_program(capsys) -> None:
    scale.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 3
    for table in tables:
        assert table in DOCS.read_text("utf-8")


def test_times_equal_those_of_pencil_and_paper() -> None:
    assert features_seconds(LAION, H200)["input"] == pytest.approx(10e12 / 250e6)
    assert features_seconds(CC12M, H200)["network"] == pytest.approx(954, abs=1)
    assert features_seconds(COCO, TWO_CORES)["decoding"] == pytest.approx(210, abs=1)
    assert resident_bytes(LAION) > 413e6 * 4096


def test_one_worker_takes_the_sum_of_all_jobs() -> None:
    draw = random.Random(3)
    expected = sum(2.0 * draw.uniform(0.5, 1.5) for _ in range(50))
    assert simulate(50, 1, 2.0, seed=3) == pytest.approx(expected)


def test_failures_cost_the_lost_shard_and_the_restart() -> None:
    ideal, rate = 20_000 * 1.0 / 16, 6.0  # failures of each worker in an hour
    seconds = simulate(20_000, 16, 1.0, failures_per_hour=rate, restart_s=60.0)
    # A worker loses 60 s and, on average, half a job of its 600 s between two failures.
    assert seconds / ideal == pytest.approx(1 + 60.5 / 600, rel=0.02)
    assert simulate(20_000, 16, 1.0) / ideal == pytest.approx(1, rel=0.01)

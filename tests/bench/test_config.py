import pytest

from showtell.bench.config import BENCH_STAGES, COCO_SCALE_STAGES, BenchConfig
from showtell.pipeline.stage.errors import ConfigError


def test_stages_depend_on_the_scale() -> None:
    assert BenchConfig(stages=["shards"]).known_stages == BENCH_STAGES
    assert BenchConfig(stages=["epoch"], coco_scale=True).known_stages == COCO_SCALE_STAGES
    with pytest.raises(ConfigError, match=r"^STAGE must be one of prepare, .*, got 'epoch'"):
        BenchConfig(stages=["epoch"])
    with pytest.raises(ConfigError, match=r"got 'epcoh'\. Did you mean 'epoch'\?$"):
        BenchConfig(stages=["draw", "epcoh"], coco_scale=True)


def test_time_to_measure_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"^--seconds must be above 0, got 0\.0\.$"):
        BenchConfig(seconds=0.0)

import pytest

from showtell.pipeline.config import TrainConfig
from showtell.pipeline.errors import ConfigError
from showtell.pipeline.presets import PRESETS, apply_preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_that_training_accepts(name: str) -> None:
    values = apply_preset(name, {"init": "run", "seed": 3}, given=())
    assert TrainConfig(**values).seed == 3


def test_what_is_given_wins_over_the_preset() -> None:
    values = {"ema": 0.5, "views": None}
    applied = apply_preset("views", values, given=("ema",))
    assert applied["ema"] == 0.5
    assert applied["views"] == PRESETS["views"]["views"]


def test_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"preset must be one of views, .*self-critical"):
        apply_preset("best", {}, given=())


def test_help_names_every_preset(showtell) -> None:
    _, text = showtell("train", "--help")
    shown = " ".join(text.split())
    assert all(name.removesuffix("critical") in shown for name in PRESETS)

import pytest

from showtell.model.config import TrainConfig
from showtell.model.generation.options import DecodingOptions
from showtell.model.presets import DECODING_PRESETS, TRAIN_PRESETS, apply_preset
from showtell.pipeline.stage.errors import ConfigError


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_every_preset_is_a_config_that_training_accepts(name: str) -> None:
    values = apply_preset(TRAIN_PRESETS, name, {"init": "run", "seed": 3}, given=())
    assert TrainConfig(**values).seed == 3


@pytest.mark.parametrize("name", DECODING_PRESETS)
def test_every_preset_is_a_way_to_decode(name: str) -> None:
    values = apply_preset(DECODING_PRESETS, name, {"max_length": 30}, given=())
    assert DecodingOptions(**values).max_length == 30


def test_what_is_given_wins_over_the_preset() -> None:
    values = {"ema": 0.5, "views": None}
    applied = apply_preset(TRAIN_PRESETS, "views", values, given=("ema",))
    assert applied["ema"] == 0.5
    assert applied["views"] == TRAIN_PRESETS["views"]["views"]


def test_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^--preset must be one of views, .*self-critical"):
        apply_preset(TRAIN_PRESETS, "best", {}, given=())


@pytest.mark.parametrize(
    ("stage", "presets"),
    [("train", TRAIN_PRESETS), ("eval", DECODING_PRESETS), ("caption", DECODING_PRESETS)],
)
def test_help_names_every_preset(showtell, monkeypatch, stage: str, presets) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = showtell(stage, "--help")[1]
    assert all(name in shown for name in presets)


def test_preset_reaches_the_decoding(showtell, tmp_path) -> None:
    options = ("eval", "--data", tmp_path, "--preset")
    assert "no run" in showtell(*options, "consensus")[1]  # and no option is wrong
    assert "--beam 2 or more" in showtell(*options, "consensus", "--beam", 1)[1]

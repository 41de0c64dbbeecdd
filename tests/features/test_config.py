import pytest

from showtell.features.config import FeaturesConfig
from showtell.pipeline.stage.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({name: 0}, f"--{name.replace('_', '-')} must be at least 1, got 0.")
            for name in ("shard_size", "batch_size", "num_workers", "image_size")
        ),
        ({"views": 0}, "--views must be at least 1 and at most 6, got 0."),
        ({"views": 7}, "--views must be at least 1 and at most 6, got 7."),
        ({"format": "csv"}, "--format must be one of hdf5, parquet, got 'csv'."),
        ({"precision": "f8"}, "--precision must be one of auto, fp32, bf16, fp16, got 'f8'."),
    ],
)
def test_invalid_options_are_refused(options, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FeaturesConfig(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options",
    [
        {"shard_size": 1, "batch_size": 1, "num_workers": 1, "image_size": 1},
        {"format": "parquet", "precision": "bf16", "views": 6},
    ],
)
def test_valid_options_are_kept(options) -> None:
    config = FeaturesConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_home_folder_in_weights_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FeaturesConfig(weights="~/w.pth").weights == str(tmp_path / "w.pth")
    for weights in ("auto", "IMAGENET1K_V1", "~no such user/w.pth", "a~/w.pth"):
        assert FeaturesConfig(weights=weights).weights == weights

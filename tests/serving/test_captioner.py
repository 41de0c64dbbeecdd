import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.features.reading.formats import describe_unknown
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.generation.options import DecodingOptions
from showtell.model.train import train
from showtell.pipeline.captions import read_images
from showtell.pipeline.stage.errors import (
    ConfigError,
    DatasetError,
    MissingArtifactError,
)
from showtell.serving import captioner as captioner_module
from showtell.serving.captioner import Captioner
from showtell.serving.images import find_images
from showtell.serving.load import load

ORIENTATION = 0x0112  # the EXIF tag


def written_of(data: Path, folder: str) -> tuple[list[dict[str, str]], list[Path]]:
    """Captions that `eval` wrote for run `r`, and the images in the same order."""
    written = json.loads((data / "runs/r/eval" / folder / "captions.json").read_text("utf-8"))
    images = read_images(data / "scenes/captions/images.parquet")
    names = dict(zip(images.image_ids.tolist(), images.file_names, strict=True))
    return written, [data / "scenes/raw" / names[entry["image_id"]] for entry in written]


@pytest.mark.parametrize("beam", [1, 3])
def test_caption_equals_what_eval_wrote_for_the_image(data, captioner, scorers, beam: int) -> None:
    evaluate(
        EvalConfig(data=data, run="r", split="train", beam=beam, precision="fp32", device="cpu")
    )
    written, paths = written_of(data, f"train-beam{beam}")
    assert len(paths) > captioner_module.BATCH_SIZE  # more than one pass
    captions = captioner.caption(paths, beam=beam)
    assert captions == [entry["caption"] for entry in written]
    assert len(set(captions)) > 3


@pytest.mark.parametrize(
    "attentive",
    [
        {"attention": "soft", "learning_rate": 2e-2},
        {
            "cell": "transformer",
            "num_layers": 2,
            "dropout": 0.0,
            "epochs": 20,
            "learning_rate": 3e-3,
        },
    ],
    ids=str,
)
def test_run_with_attention_captions_like_eval(
    prepared_scenes, random_weights, scorers, tmp_path, attentive
) -> None:
    data = Path(shutil.copytree(prepared_scenes, tmp_path / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(FeaturesConfig(data=data, dataset="scenes", precision="fp32", grid=True, **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 8}
    train(TrainConfig(data=data, dataset="scenes", run="r", **sizes | attentive))
    evaluate(EvalConfig(data=data, run="r", split="train", precision="fp32", device="cpu"))
    written, paths = written_of(data, "train-beam3")
    captions = load("r", data=data, device="cpu", precision="fp32").caption(paths)
    assert captions == [entry["caption"] for entry in written]
    assert len(set(captions)) > 1


@pytest.mark.parametrize("attention", ["none", "adaptive"])
def test_views_and_consensus_caption_like_eval(
    prepared_scenes, random_weights, scorers, tmp_path, attention: str
) -> None:
    data = Path(shutil.copytree(prepared_scenes, tmp_path / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    several = {"views": 3, "grid": attention != "none"}
    extract(FeaturesConfig(data=data, dataset="scenes", precision="fp32", **several, **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 4}
    train(TrainConfig(data=data, dataset="scenes", run="r", attention=attention, **sizes))
    decoding = {"beam": 4, "views": 3, "consensus": 5}
    evaluate(EvalConfig(data=data, run="r", precision="fp32", device="cpu", **decoding))
    written, paths = written_of(data, "test-beam4-views3-consensus5")
    captioner = load("r", data=data, device="cpu", precision="fp32")
    assert captioner.caption(paths, **decoding) == [entry["caption"] for entry in written]
    with Image.open(paths[0]) as image:
        assert captioner.caption(image, **decoding) == [written[0]["caption"]]


def test_preset_sets_options_that_are_not_given(captioner, image_paths, monkeypatch) -> None:
    seen: list[DecodingOptions] = []

    def remember(
        self: Captioner, pixels: object, options: DecodingOptions, *_: object, **__: object
    ) -> list[object]:
        seen.append(options)
        return []

    monkeypatch.setattr(Captioner, "caption_pixels", remember)
    captioner.caption(image_paths[0], preset="consensus", views=1)
    [options] = seen
    assert (options.beam, options.consensus, options.views) == (50, 1000, 1)
    with pytest.raises(ConfigError, match="preset"):
        captioner.caption(image_paths[0], preset="nonsense")


def test_consensus_without_training_features_is_refused(run_dir, image_paths, tmp_path) -> None:
    alone = load(run_dir, data=tmp_path, device="cpu")
    assert alone.caption(image_paths[0], beam=2)
    with pytest.raises(MissingArtifactError, match="features"):
        alone.caption(image_paths[0], beam=2, consensus=5)


def test_pil_images_and_paths_get_the_same_captions(captioner, folder) -> None:
    paths = sorted(folder.rglob("*.png"))
    opened = [Image.open(path) for path in paths]
    for path, image in zip(paths, opened, strict=True):
        assert np.array_equal(captioner.pixels(path), captioner.pixels(image))
    expected = captioner.caption(paths)
    assert captioner.caption([str(path) for path in paths]) == expected
    assert captioner.caption(opened) == expected
    assert captioner.caption([opened[0], paths[1], str(paths[2])]) == expected


def test_captions_keep_the_order_of_the_images(captioner, image_paths) -> None:
    some = image_paths[:8]
    captions = captioner.caption(some)
    assert captions[::-1] == captioner.caption(some[::-1])
    assert captions == [captioner.caption([path])[0] for path in some]


def test_no_images_give_no_captions(captioner) -> None:
    assert captioner.caption([]) == []


def test_decoding_options_are_used(captioner, image_paths) -> None:
    short = captioner.caption(image_paths[:8], max_length=2)
    assert max(len(caption.split()) for caption in short) == 2
    low, high = (
        captioner.caption(image_paths[:20], beam=5, length_penalty=penalty)
        for penalty in (0.0, 3.0)
    )
    assert sum(map(len, low)) < sum(map(len, high))


def test_sampling_continues_across_batches(captioner, image_paths, monkeypatch) -> None:
    options = {"sample": True, "temperature": 2.0}
    expected = captioner.caption(image_paths[:10], **options)
    assert len(set(expected)) > 1
    monkeypatch.setattr(captioner_module, "BATCH_SIZE", 3)
    assert captioner.caption(image_paths[:10], **options) == expected
    assert captioner.caption(image_paths[:10], **options, seed=1) != expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_image_is_turned_upright(
    captioner, image_paths, tmp_path, orientation: int
) -> None:
    upright = Image.open(image_paths[0]).convert("RGB").crop((0, 0, 60, 90))
    # How a camera stores it: what undoes each orientation (EXIF 2.3, tag 0x0112).
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "rotated.png"
    stored.save(path, exif=exif)
    expected = captioner.pixels(upright)
    assert np.array_equal(captioner.pixels(path), expected)
    opened = Image.open(path)
    assert np.array_equal(captioner.pixels(opened), expected)
    assert opened.getexif()[ORIENTATION] == orientation  # the caller's own is not touched


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_image_of_any_mode_is_captioned(captioner, mode: str) -> None:
    (caption,) = captioner.caption([Image.new(mode, (50, 40))])
    assert caption


def test_grey_image_equals_its_rgb_conversion(captioner, image_paths, tmp_path) -> None:
    grey = Image.open(image_paths[0]).convert("L")
    grey.save(tmp_path / "grey.png")
    (pixels,) = captioner.pixels(tmp_path / "grey.png")
    assert pixels.shape == (3, 64, 64) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
    assert captioner.caption([grey]) == captioner.caption([grey.convert("RGB")])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"text", f"is not a readable image: {describe_unknown(b'text')}."),
        (b"", "is not a readable image: the file is empty."),
        (None, "cannot be read: No such file or directory."),
    ],
)
def test_unreadable_image_is_named(captioner, tmp_path, image_paths, content, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        captioner.caption([image_paths[0], path])
    assert str(caught.value) == f"{path} {reason}"


def test_truncated_image_is_named(captioner, tmp_path, image_paths) -> None:
    path = tmp_path / "cut.jpg"
    Image.open(image_paths[0]).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))} is not a readable image: \w"):
        captioner.caption([path])


def test_single_image_needs_no_list(captioner, folder) -> None:
    path = next(find_images([folder]))
    assert captioner.caption(str(path)) == captioner.caption([path])


def test_arrays_bytes_and_tensors_are_captioned_like_paths(captioner, image_paths) -> None:
    path = image_paths[0]
    array = np.asarray(Image.open(path).convert("RGB"))
    (expected,) = captioner.caption(path)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for image in (path.read_bytes(), array, tensor):
        assert captioner.caption(image) == [expected]
        assert captioner.caption([image, path]) == [expected] * 2
    assert captioner.caption(np.stack([array] * 3)) == [expected] * 3  # a batch


def test_details_are_those_of_the_captions(captioner, image_paths) -> None:
    options = {"beam": 4, "n_best": 3, "length_penalty": 0.0}
    found = captioner.caption(image_paths[:5], details=True, **options)
    assert [captions[0].text for captions in found] == captioner.caption(image_paths[:5], **options)
    for captions in found:
        assert 1 <= len(captions) <= 3
        assert [c.log_prob for c in captions] == sorted(
            (c.log_prob for c in captions), reverse=True
        )
        for caption in captions:
            *words, end = caption.tokens
            assert " ".join(token.text for token in words) == caption.text == str(caption)
            assert end.text == "" and end.attention is None
            total = sum(token.log_prob for token in caption.tokens)
            assert total == pytest.approx(caption.log_prob, abs=1e-4)
            assert caption.score == pytest.approx(caption.log_prob)  # no length penalty

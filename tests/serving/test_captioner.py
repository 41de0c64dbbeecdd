import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from showtell.features.config import FeaturesConfig
from showtell.features.encoders.backbone import Backbone
from showtell.features.extract import extract
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.decoders.base import Decoder
from showtell.model.evaluate import evaluate
from showtell.model.generation.options import DecodingOptions
from showtell.model.runs.run import RunConfig
from showtell.model.train import train
from showtell.pipeline.captions import read_images
from showtell.pipeline.stage.errors import (
    ConfigError,
    DatasetError,
    MismatchError,
    MissingArtifactError,
)
from showtell.serving import captioner as captioner_module
from showtell.serving.captioner import Captioner, caption_files, find_images, load

ORIENTATION = 0x0112  # the EXIF tag


@pytest.fixture(scope="module")
def data(prepared_scenes, amplify_image, random_weights, tmp_path_factory) -> Path:
    """A data folder with a run `r` that writes different captions for different images.

    All in float32, so that the features of an image do not depend on the rest of its batch.
    """
    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("captioner") / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(FeaturesConfig(data=data, dataset="scenes", precision="fp32", **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 8}
    train(TrainConfig(data=data, dataset="scenes", run="r", learning_rate=2e-2, dropout=0, **sizes))
    amplify_image(data)
    return data


@pytest.fixture(scope="module")
def captioner(data) -> Captioner:
    return load("r", data=data, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def image_paths(prepared_scenes) -> list[Path]:
    """The drawn scenes, of all splits."""
    return sorted((prepared_scenes / "scenes/raw/images").iterdir())


@pytest.fixture
def folder(image_paths, tmp_path) -> Path:
    """A folder with images, a subfolder and a text file."""
    folder = tmp_path / "mine"
    (folder / "a").mkdir(parents=True)
    for path, name in zip(image_paths, ("b.png", "a/c.png", "d.PNG", "a.png"), strict=False):
        Image.open(path).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def run_dir(data, tmp_path) -> Path:
    """A copy of the run, alone, that a test may write to."""
    return Path(shutil.copytree(data / "runs/r", tmp_path / "carried" / "elsewhere"))


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


def test_load_takes_a_folder_a_name_or_the_newest_run(
    data, captioner, image_paths, run_dir
) -> None:
    expected = captioner.caption(image_paths[:4])
    for options in (
        {"run": data / "runs/r"},
        {"run": str(run_dir)},
        {"run": "r", "data": str(data)},
        {"data": data},
    ):
        loaded = load(**options, device="cpu", precision="fp32")
        assert loaded.caption(image_paths[:4]) == expected
        assert not loaded.decoder.training


def test_run_with_attention_captions_like_eval(
    prepared_scenes, random_weights, scorers, tmp_path
) -> None:
    data = Path(shutil.copytree(prepared_scenes, tmp_path / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(FeaturesConfig(data=data, dataset="scenes", precision="fp32", grid=True, **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 8}
    attentive = {"run": "r", "attention": "soft", "learning_rate": 2e-2}
    train(TrainConfig(data=data, dataset="scenes", **attentive, **sizes))
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
        self: Captioner, pixels: object, options: DecodingOptions, _: object
    ) -> list[object]:
        seen.append(options)
        return []

    monkeypatch.setattr(Captioner, "decode_pixels", remember)
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


def test_run_with_grids_needs_an_encoder_with_grids(run_dir, monkeypatch) -> None:
    monkeypatch.setattr(Decoder, "uses_grid", True)
    monkeypatch.setattr(Backbone, "has_grid", False)
    with pytest.raises(
        MismatchError, match=r"needs grid features, which resnet18-\S+ does not have"
    ):
        load(run_dir, device="cpu")


def test_unknown_run_is_refused(data, tmp_path) -> None:
    with pytest.raises(MissingArtifactError, match=r"no run 'x' with weights \(found: r\)"):
        load("x", data=data)
    with pytest.raises(MissingArtifactError, match="found none"):
        load(data=tmp_path)


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
        (b"not an image", "is not a readable image: not an image in a format that PIL knows."),
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


def test_image_above_the_limit_is_named_without_a_warning(
    captioner, tmp_path, capsys, recwarn, monkeypatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2999)
    monkeypatch.setattr(captioner, "max_pixels", 2999)
    path = tmp_path / "large.png"
    Image.new("L", (100, 30)).save(path)
    assert caption_files(captioner, [path], DecodingOptions()) == 1
    expected = f"error: {path} is not a readable image: has 3,000 pixels, more than --max-pixels"
    assert capsys.readouterr().err == f"{expected} 2,999.\n"
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def test_truncated_image_is_named(captioner, tmp_path, image_paths) -> None:
    path = tmp_path / "cut.jpg"
    Image.open(image_paths[0]).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))} is not a readable image: \w"):
        captioner.caption([path])


def test_find_images_sorts_a_folder_by_name(folder) -> None:
    assert list(find_images([folder])) == [
        folder / name for name in ("a/c.png", "a.png", "b.png", "d.PNG")
    ]


def test_find_images_keeps_the_order_of_arguments(folder) -> None:
    given = [folder / "d.PNG", folder / "a", folder / "notes.txt"]
    assert list(find_images(given)) == [
        folder / "d.PNG",
        folder / "a" / "c.png",
        folder / "notes.txt",  # whatever is named is tried
    ]


def test_find_images_leaves_out_hidden_and_generated_files(folder) -> None:
    before = list(find_images([folder]))
    for name in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "a/.cache"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "x.jpg").touch()
        (folder / name / "x.png").touch()
    for name in ("Thumbs.db", "._b.png", ".DS_Store"):
        (folder / name).touch()
    assert list(find_images([folder])) == before
    hidden = folder / ".thumbnails"
    assert list(find_images([hidden])) == [hidden / "deep/x.jpg", hidden / "x.png"]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "JPEG", "tif", "webp"])
def test_find_images_knows_the_suffix(tmp_path, suffix: str) -> None:
    (tmp_path / f"x.{suffix}").touch()
    assert list(find_images([tmp_path])) == [tmp_path / f"x.{suffix}"]


def test_find_images_follows_links_to_folders_and_their_loops_end(folder, tmp_path) -> None:
    before = list(find_images([folder]))
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.jpg").touch()
    (folder / "0-linked").symlink_to(other)
    (folder / "again").symlink_to(other)  # each folder once
    (folder / "0-same").symlink_to(folder / "a")
    (folder / "a" / "loop").symlink_to(folder)
    (other / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "file.png").symlink_to(other / "x.jpg")
    found = [folder / "0-linked" / "x.jpg", *before, folder / "file.png"]
    assert list(find_images([folder])) == sorted(found)


def test_folder_without_images_is_refused(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(DatasetError) as caught:
        list(find_images([tmp_path]))
    assert str(caught.value).startswith(
        f"{tmp_path} contains no images (.avif, .bmp, .gif, .j2k, .jfif,"
    )


def test_missing_file_is_named_and_the_others_are_captioned(
    captioner, folder, tmp_path, capsys
) -> None:
    missing, there = tmp_path / "nosuch.jpg", next(find_images([folder]))
    assert caption_files(captioner, [missing, there], DecodingOptions()) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {missing} cannot be read: No such file or directory.\n"
    assert captured.out.startswith(f"{there}: ")


def test_single_image_needs_no_list(captioner, folder) -> None:
    path = next(find_images([folder]))
    assert captioner.caption(str(path)) == captioner.caption([path])


def test_caption_files_prints_a_line_for_each_image(captioner, folder, capsys) -> None:
    assert caption_files(captioner, [folder], DecodingOptions()) == 0
    paths = list(find_images([folder]))
    expected = captioner.caption(paths)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{p}: {text}" for p, text in zip(paths, expected, strict=True)]


def test_caption_files_prints_n_best_captions_below_the_path(captioner, folder, capsys) -> None:
    path = next(find_images([folder]))
    options = DecodingOptions(beam=4, n_best=3, length_penalty=0.0)
    assert caption_files(captioner, [path], options) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    found = [(float(line.split()[0]), " ".join(line.split()[1:])) for line in lines]
    assert head == f"{path}:" and len(set(found)) == 3
    assert found == sorted(found, reverse=True)
    assert found[0][1] == captioner.caption(path, beam=4, length_penalty=0.0)[0]


def test_caption_files_continues_after_an_unreadable_image(
    captioner, folder, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(captioner_module, "BATCH_SIZE", 2)
    (folder / "b.png").write_bytes(b"not an image")
    (folder / "d.PNG").write_bytes(b"")
    assert caption_files(captioner, [folder], DecodingOptions(beam=1)) == 2
    captured = capsys.readouterr()
    assert [line.split(": ")[0] for line in captured.out.splitlines()] == [
        str(folder / name) for name in ("a/c.png", "a.png")
    ]
    errors = captured.err.splitlines()
    assert [line.split(" is not")[0] for line in errors] == [
        f"error: {folder / name}" for name in ("b.png", "d.PNG")
    ]


def change_backbone(run_dir: Path, **values: object) -> None:
    (run_dir / "manifest.json").unlink()
    config = RunConfig.read(run_dir)
    replace(config, backbone=config.backbone | values).write(run_dir)


def test_other_weights_are_refused(run_dir, tmp_path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    torch.save(resnet18().state_dict(), tmp_path / "other.pth")
    change_backbone(run_dir, weights=str(tmp_path / "other.pth"))
    with pytest.raises(MismatchError) as caught:
        load(run_dir, device="cpu")
    trained_with = json.loads((run_dir / "config.json").read_text())["backbone"]["weights_sha256"]
    assert str(run_dir) in str(caught.value)
    assert f"was trained with {trained_with[:12]}" in str(caught.value)


def test_missing_weights_are_named(run_dir, tmp_path) -> None:
    change_backbone(run_dir, weights=str(tmp_path / "gone.pth"))
    with pytest.raises(MissingArtifactError, match=r"gone\.pth does not exist\. Give --weights"):
        load(run_dir, device="cpu")

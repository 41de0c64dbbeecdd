"""The whole pipeline through the real command line, on drawn scenes and on bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import showtell as package

TRAIN = ("--hidden-size", 32, "--embed-size", 32, "--epochs", 2, "--batch-size", 32)


def extract_options(random_weights: Path) -> tuple[object, ...]:
    return ("--encoder", "resnet18", "--weights", random_weights, "--image-size", 64)


@pytest.fixture
def own_photographs(tmp_path, prepared_scenes) -> Path:
    """A user's folder: six images and a table of captions."""
    folder = tmp_path / "photos"
    (folder / "pictures").mkdir(parents=True)
    rows = ["file_name,caption,split"]
    for index, path in enumerate(sorted((prepared_scenes / "scenes/raw/images").iterdir())[:6]):
        shutil.copy(path, folder / "pictures" / path.name)
        split = ("train", "train", "train", "val", "val", "test")[index]
        rows += [f"pictures/{path.name},A drawn scene number {n},{split}" for n in range(5)]
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return folder


def assert_every_command_prints_json(showtell_json, data: Path, weights: Path) -> None:
    """Run each command again, with `--json`, on the finished run `whole`."""
    eval_dir, common = data / "runs/whole/eval/test-beam5", ("--data", data)
    for stage, options in (
        ("download", ()),
        ("prepare", ("--min-count", 2)),
        ("features", extract_options(weights)),
        ("train", ("--run", "whole", *TRAIN)),
    ):
        status, manifest = showtell_json(stage, "--dataset", "scenes", *options, *common)
        assert (status, manifest["stage"]) == (0, stage)

    status, scores = showtell_json("eval", "--run", "whole", "--beam", 5, *common)
    metrics = json.loads((eval_dir / "metrics.json").read_text())
    assert status == 0 and scores == metrics | {
        "run": "whole",
        "evaluation": "test-beam5",
        "path": str(eval_dir),
    }

    status, comparison = showtell_json("compare", "whole", eval_dir, *common)
    assert status == 0 and comparison["num_images"] == metrics["num_images"]
    cider = next(score for score in comparison["scores"] if score["name"] == "CIDEr")
    assert cider["score_a"] == cider["score_b"] == pytest.approx(metrics["CIDEr"])

    picture, missing = next((data / "scenes/raw/images").iterdir()), data / "missing.jpg"
    options = ("--run", "whole", "--n-best", 2)
    status, captioned = showtell_json("caption", picture, missing, *options, *common)
    assert status == 1
    assert [entry["path"] for entry in captioned] == [str(picture), str(missing)]
    assert [set(found) for found in captioned[0]["captions"]] == 2 * [
        {"caption", "log_prob", "score", "word_probs"}
    ]
    assert captioned[1]["captions"] == [] and "does not exist" in captioned[1]["error"]

    status, stages = showtell_json("status", *common)
    assert (status, stages[0]["stage"], stages[0]["state"]) == (0, "download", "done")


def test_all_stages_from_drawing_to_captions(
    showtell, showtell_json, tmp_path, random_weights
) -> None:
    data = tmp_path / "data"
    common = ("--data", data)
    for arguments in (
        ("download", "--dataset", "scenes", *common),
        ("prepare", "--dataset", "scenes", "--min-count", 2, *common),
        ("features", "--dataset", "scenes", *extract_options(random_weights), *common),
        ("train", "--dataset", "scenes", "--run", "whole", *TRAIN, *common),
        ("eval", "--run", "whole", "--beam", 5, *common),
    ):
        status, output = showtell(*arguments)
        assert status == 0, output
    # Files and fields that other programs rely on.
    eval_dir = data / "runs/whole/eval/test-beam5"
    metrics = json.loads((eval_dir / "metrics.json").read_text())
    captions = json.loads((eval_dir / "captions.json").read_text())
    names = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}
    assert names | {"num_images", "images_per_second"} <= set(metrics)
    assert all(0 <= metrics[name] <= 1 for name in names - {"CIDEr"})
    assert metrics["num_images"] == len(captions) > 0
    assert all(set(entry) == {"image_id", "caption"} for entry in captions)
    assert all(isinstance(e["image_id"], int) and isinstance(e["caption"], str) for e in captions)
    assert (data / "scenes/captions/vocab.json").exists()
    assert (data / "runs/whole/manifest.json").exists()

    status, output = showtell("eval", "--run", "whole", "--beam", 5, *common)
    assert status == 0 and "up to date" in output

    pictures = sorted((data / "scenes/raw/images").iterdir())[:2]
    status, output = showtell("caption", *pictures, "--run", "whole", *common)
    lines = [line for line in output.splitlines() if line.startswith(str(pictures[0].parent))]
    assert status == 0 and len(lines) == 2
    captioner = package.load(data / "runs/whole", device="cpu")
    assert lines == [
        f"{path}: {text}" for path, text in zip(pictures, captioner.caption(pictures), strict=True)
    ]

    status, output = showtell("status", *common)
    assert status == 0
    assert output.count("done") >= 5 and "missing" not in output
    assert_every_command_prints_json(showtell_json, data, random_weights)


def test_own_images_with_a_table_become_a_model(
    showtell, tmp_path, own_photographs, random_weights
) -> None:
    data = tmp_path / "data"
    common = ("--dataset", "holidays", "--data", data)
    status, output = showtell(
        "prepare", "--table", own_photographs / "captions.csv", "--min-count", 1, *common
    )
    assert status == 0, output
    status, output = showtell("features", *extract_options(random_weights), *common)
    assert status == 0, output
    status, output = showtell("train", *TRAIN, *common)
    assert status == 0, output
    status, output = showtell("eval", "--split", "val", "--data", data)
    assert status == 0, output
    metrics = data / "runs/holidays-gru/eval/val-beam3/metrics.json"
    assert json.loads(metrics.read_text())["num_images"] == 2


def test_unreadable_image_is_skipped_by_every_stage(
    showtell, tmp_path, own_photographs, random_weights
) -> None:
    data, pictures = tmp_path / "data", sorted((own_photographs / "pictures").iterdir())
    pictures[1].write_bytes(pictures[1].read_bytes()[:600])
    common = ("--dataset", "holidays", "--data", data)
    assert showtell("prepare", "--source", own_photographs, "--min-count", 1, *common)[0] == 0
    status, output = showtell("features", *extract_options(random_weights), *common)
    assert status == 0 and pictures[1].name in output
    folder = next((data / "holidays/features").iterdir())
    skipped = json.loads((folder / "manifest.json").read_text())["skipped"]
    assert [Path(name).name for name, _ in skipped] == [pictures[1].name]
    assert showtell("train", *TRAIN, *common)[0] == 0
    # `caption` skips it too, and captions the others.
    status, output = showtell("caption", *pictures[:3], "--data", data)
    assert status == 1
    assert f"error: {pictures[1]} is not a readable image" in output
    assert all(f"{pictures[i]}: " in output for i in (0, 2))


BAD_COMMANDS = [
    (("prepare", "--dataset", "flickr8k", "--source", "{tmp}/nowhere"), "nowhere"),
    (("prepare", "--dataset", "imagenet"), "imagenet"),
    (("prepare", "--dataset", "runs"), "--dataset must not be runs"),
    (("prepare", "--dataset", "scenes", "--data", "{tmp}/a-file"), "a-file"),
    (("prepare", "--dataset", "own", "--table", "{tmp}/empty.csv"), "empty.csv"),
    (("prepare", "--dataset", "own", "--table", "{tmp}/columns.csv"), "columns.csv"),
    (("prepare", "--dataset", "own", "--table", "{tmp}/absent.csv"), "nosuch.jpg"),
    (("prepare", "--min-count", 2, "--vocab-size", 9), "exclude each other"),
    (("download", "--dataset", "imagenet"), "imagenet"),
    (("features", "--dataset", "never"), "showtell prepare --dataset never"),
    (("features", "--dataset", "scenes", "--encoder", "resnet51"), "resnet51"),
    (("features", "--dataset", "scenes", "--weights", "{tmp}/nosuch.pth"), "nosuch.pth"),
    (("features", "--dataset", "scenes", "--format", "csv"), "--format must be one of"),
    (("train", "--dataset", "never"), "showtell prepare --dataset never"),
    (("train", "--dataset", "scenes", "--features", "vgg16-mine"), "vgg16-mine"),
    (("train", "--dataset", "scenes", "--cell", "tree"), "--cell must be one of"),
    (("train", "--dataset", "scenes", "--device", "cuda:77"), "cuda:77"),
    (("eval", "--run", "never"), "no run 'never'"),
    (("eval", "--beam", 0), "--beam must be at least 1, got 0"),
    (("caption", "{tmp}/nosuch.jpg", "--run", "never"), "no run 'never'"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    BAD_COMMANDS,
    ids=lambda a: " ".join(map(str, a)) if isinstance(a, tuple) else None,
)
def test_bad_input_gives_one_line_and_an_exit_status(
    showtell, tmp_path, scenes, arguments: tuple[object, ...], expected: str
) -> None:
    (tmp_path / "a-file").write_text("not a folder")
    (tmp_path / "empty.csv").write_text("file_name,caption\n")
    (tmp_path / "columns.csv").write_text("picture,text\na.jpg,hello\n")
    (tmp_path / "absent.csv").write_text("file_name,caption\nnosuch.jpg,hello\n")
    before = sorted(path for path in scenes.rglob("*") if path.name != ".lock")
    filled = [str(argument).format(tmp=tmp_path) for argument in arguments]
    status, output = showtell(filled[0], "--data", scenes, *filled[1:])
    assert status == 1
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0]
    assert "Traceback" not in output
    assert [path for path in before if not path.exists()] == []


def test_eval_refuses_another_vocabulary(showtell, scenes) -> None:
    assert showtell("train", "--dataset", "scenes", *TRAIN, "--data", scenes)[0] == 0
    assert showtell("prepare", "--dataset", "scenes", "--vocab-size", 9, "--data", scenes)[0] == 0
    status, output = showtell("eval", "--data", scenes)
    assert status == 1
    assert re.search(r"vocab\.json has 13 words .* the run scenes-gru was trained with", output)


def test_eval_refuses_features_of_other_weights(showtell, scenes, tmp_path) -> None:
    import torch
    from torchvision.models import resnet18

    assert showtell("train", "--dataset", "scenes", *TRAIN, "--data", scenes)[0] == 0
    torch.manual_seed(1)
    other = tmp_path / "random.pth"  # the same file name, so that the same features folder is used
    torch.save(resnet18().state_dict(), other)
    assert showtell(
        "features", "--dataset", "scenes", *extract_options(other), "--data", scenes
    )[0] == 0  # fmt: skip
    status, output = showtell("eval", "--data", scenes)
    assert status == 1
    assert "weights_sha256" in output and "showtell features" in output


def test_folder_is_captioned_in_order_of_name(showtell, scenes, tmp_path) -> None:
    assert showtell("train", "--dataset", "scenes", *TRAIN, "--data", scenes)[0] == 0
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, mode in (("b.png", "L"), ("a.jpg", "CMYK"), ("c.png", "RGBA")):
        Image.new(mode, (50, 40)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    status, output = showtell("caption", folder, "--data", scenes)
    assert status == 0
    *captioned, aside = [line.split(": ")[0] for line in output.splitlines()]
    assert captioned == [str(folder / name) for name in ("a.jpg", "b.png", "c.png")]
    assert aside == "Using the newest run, scenes-gru; choose another with --run."


def test_console_script_runs_from_any_folder(tmp_path) -> None:
    script = Path(sys.executable).with_name("showtell")
    done = subprocess.run(
        [script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    for command in ("download", "prepare", "features", "train", "eval", "caption", "status"):
        assert command in done.stdout

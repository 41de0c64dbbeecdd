import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from showtell.model.compare import compare, find_differences, find_evaluation
from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.metrics.image_scores import ImageScores
from showtell.model.scoring.config import CompareConfig
from showtell.pipeline import status
from showtell.pipeline.stage.checksums import seal, unseal
from showtell.pipeline.stage.errors import MismatchError, MissingArtifactError
from showtell.pipeline.stage.files import hash_file
from showtell.pipeline.stage.manifest import Manifest

CAPTIONS = ("images.parquet", "captions.parquet", "vocab.json")
NUM_IMAGES = 40


def make_images(seed: int, better: float = 0.0, num_images: int = NUM_IMAGES) -> ImageScores:
    """Score captions of drawn words; CIDEr of an image differs little between seeds."""
    rng = np.random.default_rng(seed)
    words = lambda: " ".join(rng.choice(list("abcdefgh"), 9))  # noqa: E731
    references = {image_id: [words(), words()] for image_id in range(num_images)}
    scores = CaptionScorer(references).score_each({i: words() for i in references})
    cider = np.random.default_rng(99).random(num_images) + better + 0.1 * rng.random(num_images)
    return ImageScores(
        scores.image_ids, scores.bleu, rng.random((num_images, 23)), {"CIDEr": cider}
    )


def write_evaluation(data: Path, run: str, images: ImageScores, split: str = "val") -> Path:
    """Write the files of train and eval that `compare` reads."""
    run_dir, captions = data / "runs" / run, data / "scenes" / "captions"
    eval_dir = run_dir / "eval" / f"{split}-beam3"
    eval_dir.mkdir(parents=True)
    (run_dir / "best.safetensors").write_text(run)
    Manifest("train", 1, {"dataset": "scenes"}, {}, {}).write(run_dir)
    images.write(eval_dir / "scores.npz")
    inputs = {name: hash_file(captions / name) for name in CAPTIONS}
    inputs["best.safetensors"] = hash_file(run_dir / "best.safetensors")
    outputs = {"scores.npz": (eval_dir / "scores.npz").stat().st_size}
    details = {"dataset": "scenes"}
    Manifest("eval", 2, {"split": split}, inputs, outputs, details=details).write(eval_dir)
    return eval_dir


@pytest.fixture
def data(tmp_path) -> Path:
    """A data folder with one evaluation of run `a` and a better one of run `b`."""
    (tmp_path / "scenes/captions").mkdir(parents=True)
    for name in CAPTIONS:
        (tmp_path / "scenes/captions" / name).write_text(name)
    write_evaluation(tmp_path, "a", make_images(0))
    write_evaluation(tmp_path, "b", make_images(1, better=0.2))
    return tmp_path


def write_ensemble(data: Path, images: ImageScores) -> Path:
    """Write an evaluation of the ensemble of runs `a` and `b`."""
    captions = data / "scenes" / "captions"
    eval_dir = data / "ensembles/a+b/eval/val-beam3"
    eval_dir.mkdir(parents=True)
    images.write(eval_dir / "scores.npz")
    inputs = {name: hash_file(captions / name) for name in CAPTIONS}
    for run in "ab":
        inputs[f"{run}/best.safetensors"] = hash_file(data / f"runs/{run}/best.safetensors")
    outputs = {"scores.npz": (eval_dir / "scores.npz").stat().st_size}
    details = {"dataset": "scenes"}
    Manifest("eval", 2, {"split": "val"}, inputs, outputs, details=details).write(eval_dir)
    return eval_dir


def change_manifest(data: Path, run: str, section: str, name: str, value: object) -> None:
    path = data / "runs" / run / "eval/val-beam3/manifest.json"
    manifest = unseal(json.loads(path.read_text()))
    manifest[section][name] = value
    path.write_text(json.dumps(seal(manifest)))


# --- the statistics ----------------------------------------------------------------------------


def test_differences_are_paired_by_image() -> None:
    a, b = make_images(0), make_images(1, better=0.03)
    found = {d.name: d for d in find_differences(a, b, 1000, seed=0)}["CIDEr"]
    differences = b.means["CIDEr"] - a.means["CIDEr"]
    error = differences.std() / np.sqrt(NUM_IMAGES)
    assert found.score_b - found.score_a == pytest.approx(differences.mean())
    assert found.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.3 * error)
    # Without pairing, the uncertainty of each score hides the difference.
    assert a.means["CIDEr"].std() / np.sqrt(NUM_IMAGES) > 5 * error


def test_order_of_images_does_not_matter() -> None:
    a, b = make_images(0), make_images(1)
    reversed_b = b.select(np.arange(NUM_IMAGES)[::-1])
    assert find_differences(a, reversed_b, 200, seed=0) == find_differences(a, b, 200, seed=0)


def test_evaluation_does_not_differ_from_itself() -> None:
    for found in find_differences(make_images(0), make_images(0), 200, seed=0):
        assert (found.low, found.high, found.p_value) == (0, 0, 1)


def test_only_common_scores_are_compared() -> None:
    a = make_images(0).with_means({"SPICE": np.ones(NUM_IMAGES)})
    names = [found.name for found in find_differences(a, make_images(1), 200, seed=0)]
    assert names == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "CIDEr"]


# --- the command -------------------------------------------------------------------------------


def test_command_prints_scores_difference_interval_and_p(data, showtell) -> None:
    status, shown = showtell("compare", "a", "b/val-beam3", "--data", data)
    assert status == 0
    found = compare(CompareConfig(data=data, eval_a="a", eval_b="b"))[-1]
    row = next(line.split() for line in shown.splitlines() if "CIDEr" in line)
    assert row[1:4] == [
        f"{100 * found.score_a:.1f}",
        f"{100 * found.score_b:.1f}",
        f"{100 * (found.score_b - found.score_a):+.1f}",
    ]
    assert f"{100 * found.low:+.1f} to {100 * found.high:+.1f}" in " ".join(row)
    assert row[-1] == f"{found.p_value:.4f}" == "0.0002"
    assert "40 images" in shown and "p is below 0.05" in shown


def test_evaluation_is_found_by_folder_or_name(data) -> None:
    folder = data / "runs/a/eval/val-beam3"
    for name in ("a", "a/val-beam3", str(folder), f"{folder}/"):
        assert find_evaluation(data, name) == folder
    shutil.copytree(folder, folder.with_name("val-beam5"))
    with pytest.raises(
        MissingArtifactError, match=r"val-beam3, val-beam5; choose one, .*a/val-beam3"
    ):
        find_evaluation(data, "a")
    for name in ("x", "a/test-beam3", "", str(data)):
        with pytest.raises(
            MissingArtifactError,
            match=r"is not the name of (one evaluation\. .*choose|an evaluation: .*'showtell eval)",
        ):
            find_evaluation(data, name)


def test_ensemble_is_found_by_its_runs_and_compared_with_one(data, showtell) -> None:
    folder = write_ensemble(data, make_images(2, better=0.4))
    for name in ("a+b", "b+a", "b+a/val-beam3", str(folder)):
        assert find_evaluation(data, name) == folder
    code, shown = showtell("compare", "a", "a+b", "--data", str(data))
    assert code == 0 and "CIDEr" in shown
    Path(data / "runs/b/best.safetensors").write_text("trained again")
    status.hash_if_present.cache_clear()
    code, shown = showtell("compare", "a", "a+b", "--data", str(data))
    assert code != 0 and "stale: b/best.safetensors changed" in shown
    assert f"showtell eval --split val --run a --run b --data {data}'" in shown
    with pytest.raises(MissingArtifactError, match="'showtell eval --run x --run y "):
        find_evaluation(data, "x+y")


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "name", "value", "named"),
    [
        ("details", "dataset", "coco", r"different datasets \(scenes and coco\)"),
        ("config", "split", "test", r"different splits \(val and test\)"),
    ],
)
def test_different_datasets_or_splits_are_an_error(data, section, name, value, named) -> None:
    change_manifest(data, "b", section, name, value)
    with pytest.raises(MismatchError, match=named):
        compare(CompareConfig(data=data, eval_a="a", eval_b="b"))


def test_different_captions_are_an_error(data, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data / "scenes", other / "scenes")
    (other / "scenes/captions/captions.parquet").write_text("other captions")
    folder = write_evaluation(other, "b", make_images(1))
    with pytest.raises(MismatchError, match="different captions"):
        compare(CompareConfig(data=data, eval_a="a", eval_b=str(folder)))


def test_different_images_are_an_error(data) -> None:
    write_evaluation(data, "c", make_images(1, num_images=NUM_IMAGES - 1))
    with pytest.raises(
        MismatchError, match=r"\(40 images\) and .* \(39 images\) .* image 39 is in only one"
    ):
        compare(CompareConfig(data=data, eval_a="a", eval_b="c"))


def test_stale_or_unfinished_evaluations_are_an_error(data, showtell) -> None:
    (data / "runs/b/best.safetensors").write_text("trained again")
    status, shown = showtell("compare", "a", "b", "--data", data)
    assert status == 1
    assert "stale: best.safetensors changed. Run '" in shown
    assert f"showtell eval --split val --run b --data {data}'" in shown
    (data / "runs/a/eval/val-beam3/manifest.json").unlink()
    with pytest.raises(
        MissingArtifactError, match=r"is not finished. Run 'showtell eval --split val --run a "
    ):
        compare(CompareConfig(data=data, eval_a="a", eval_b="a"))


def test_evaluation_without_scores_of_each_image_is_an_error(data) -> None:
    folder = data / "runs/a/eval/val-beam3"
    (folder / "scores.npz").unlink()
    path = folder / "manifest.json"
    manifest = unseal(json.loads(path.read_text())) | {"outputs": {}, "version": 1}
    path.write_text(json.dumps(seal(manifest)))
    with pytest.raises(MissingArtifactError, match=r"has no scores\.npz because an older version"):
        compare(CompareConfig(data=data, eval_a="a", eval_b="b"))

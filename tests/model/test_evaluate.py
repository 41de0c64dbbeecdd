import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.features.store import FeatureStore, find_features
from showtell.model import evaluate as evaluate_module
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.decoders.ensemble import Ensemble
from showtell.model.decoders.show_tell import ShowTell
from showtell.model.evaluate import evaluate
from showtell.model.generation import generate as decoding
from showtell.model.generation.beam import beam_search
from showtell.model.generation.options import DecodingOptions
from showtell.model.metrics.image_scores import ImageScores
from showtell.model.metrics.official import OfficialScores
from showtell.model.metrics.scorer import score_captions
from showtell.model.metrics.spice import Spice
from showtell.model.metrics.statistics import CaptionStatistics
from showtell.model.runs.find import run_names
from showtell.model.runs.run import RunConfig, load_run
from showtell.model.runs.status import find_stages
from showtell.model.train import train
from showtell.pipeline import status as status_module
from showtell.pipeline.captions import read_images, read_references
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare
from showtell.pipeline.stage.checksums import seal, unseal
from showtell.pipeline.stage.errors import MismatchError, MissingArtifactError, ScorerError
from showtell.pipeline.stage.manifest import Manifest

NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
TABLE = "scenes/raw/captions.csv"


@pytest.fixture(scope="module")
def trained(prepared_scenes, amplify_image, tmp_path_factory) -> Path:
    """A data folder with a run `r` that writes different captions for different images."""
    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("trained") / "data"))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 8}
    train(TrainConfig(data=data, dataset="scenes", run="r", learning_rate=2e-2, dropout=0, **sizes))
    amplify_image(data)
    return data


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> Path:
    """The same folder after `showtell eval` with the real scorers; read-only."""
    data = Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "data"))
    evaluate(EvalConfig(data=data, run="r", num_samples=2))
    return data


@pytest.fixture
def data(trained, tmp_path) -> Path:
    """A copy of `trained` that a test may write to."""
    return Path(shutil.copytree(trained, tmp_path / "data"))


def written(data: Path, folder: str, name: str = "captions", run: str = "r"):
    return json.loads((data / "runs" / run / "eval" / folder / f"{name}.json").read_text("utf-8"))


def ids_of(data: Path, split: str) -> list[int]:
    return read_images(data / "scenes/captions/images.parquet").select(split).tolist()


def prepare_again(data: Path, random_weights: Path, keep=lambda row: True) -> None:
    """Run prepare and features again on the copy, with the rows that `keep` accepts."""
    head, *rows = (data / TABLE).read_text("utf-8").splitlines(keepends=True)
    (data / TABLE).write_text(head + "".join(filter(keep, rows)), "utf-8")
    prepare(PrepareConfig(data=data, dataset="scenes", min_count=1))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(FeaturesConfig(data=data, dataset="scenes", shard_size=25, **options))


def test_metrics_have_official_names_and_are_fractions(evaluated) -> None:
    metrics = written(evaluated, "test-beam3", "metrics")
    assert list(metrics)[:7] == NAMES
    assert all(0 <= metrics[name] <= 1 for name in NAMES if name != "CIDEr")
    assert 0 <= metrics["CIDEr"] <= 10
    assert 0.1 < metrics["Bleu_1"] < 1  # the scenes need few words
    assert metrics["Bleu_1"] >= metrics["Bleu_2"] >= metrics["Bleu_3"] >= metrics["Bleu_4"]
    assert metrics["num_images"] == 10
    assert all(metrics[name] > 0 for name in ("images_per_second", "decode_seconds"))


def test_every_score_has_an_interval_and_is_stored_by_image(evaluated, capsys) -> None:
    metrics = written(evaluated, "test-beam3", "metrics")
    assert list(metrics["intervals"]) == NAMES
    assert all(low <= metrics[name] <= high for name, (low, high) in metrics["intervals"].items())
    assert metrics["intervals"]["Bleu_1"][0] < metrics["intervals"]["Bleu_1"][1]
    images = ImageScores.read(evaluated / "runs/r/eval/test-beam3/scores.npz")
    assert images.image_ids.tolist() == ids_of(evaluated, "test")
    assert images.of_all() == pytest.approx({name: metrics[name] for name in NAMES}, abs=1e-9)
    evaluate(EvalConfig(data=evaluated, run="r", num_samples=0))
    low, high = (100 * end for end in metrics["intervals"]["Bleu_4"])
    assert f"({low:.1f} to {high:.1f})" in capsys.readouterr().out


def test_statistics_describe_the_written_captions(data, scorers, capsys) -> None:
    folder = data / "runs/r/eval/test-beam3-max6"
    config = EvalConfig(data=data, run="r", max_length=6, num_samples=0)
    evaluate(config)
    metrics = written(data, folder.name, "metrics")
    captions = [entry["caption"].split() for entry in written(data, folder.name)]
    words = [word for caption in captions for word in caption]
    assert metrics["words_per_caption"] == pytest.approx(len(words) / 10)
    assert metrics["distinct_1"] == pytest.approx(len({*words}) / len(words))
    assert metrics["captions_at_limit"] == pytest.approx(sum(len(c) == 6 for c in captions) / 10)
    assert metrics["captions_at_limit"] > 0 and 0 <= metrics["novel_captions"] <= 1
    assert not {"distinct_1", "words_used"} & {*metrics["intervals"]}
    assert f"at the length limit {metrics['captions_at_limit']:.1%}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_evaluations_without_statistics_stay_up_to_date(data, scorers, capsys) -> None:
    config = EvalConfig(data=data, run="r", num_samples=0)
    evaluate(config)
    path = data / "runs/r/eval/test-beam3/metrics.json"
    names = {field.name for field in fields(CaptionStatistics)}
    metrics = {k: v for k, v in json.loads(path.read_text()).items() if k not in names}
    path.write_text(json.dumps(metrics))
    manifest = Manifest.read(path.parent)
    sizes = manifest.outputs | {path.name: path.stat().st_size}
    replace(manifest, outputs=sizes, checksums={}).write(path.parent)
    capsys.readouterr()
    evaluate(config)
    output = capsys.readouterr().out
    assert len(scorers) == 1 and "is up to date" in output and "distinct" not in output


def test_optional_metrics_are_neither_computed_nor_mentioned_unless_asked_for(
    data, scorers, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(Spice, "explain_absence", lambda self: "")
    evaluate(EvalConfig(data=data, run="r"))
    captured = capsys.readouterr()
    assert "SPICE" not in captured.out + captured.err
    assert "CLIPScore" not in captured.out + captured.err
    assert not {"SPICE", "CLIPScore"} & set(written(data, "test-beam3", "metrics"))
    assert "spice" not in written(data, "test-beam3", "manifest")["inputs"]


def test_spice_is_added_to_the_scores_and_the_manifest(data, scorers, monkeypatch) -> None:
    monkeypatch.setattr(Spice, "explain_absence", lambda self: "")
    monkeypatch.setattr(Spice, "score", lambda self, captions: np.full(10, 0.25))
    evaluate(EvalConfig(data=data, run="r"))
    for _ in range(2):
        evaluate(EvalConfig(data=data, run="r", spice=True))
    assert len(scorers) == 2  # scored again for SPICE, then up to date
    assert written(data, "test-beam3", "metrics")["SPICE"] == 0.25
    assert "spice" in written(data, "test-beam3", "manifest")["inputs"]


def test_optional_metric_that_fails_is_left_out_and_tried_again(
    data, scorers, monkeypatch, capsys
) -> None:
    def fail(self: Spice, captions: object) -> None:
        raise ScorerError("no memory")

    monkeypatch.setattr(Spice, "explain_absence", lambda self: "")
    monkeypatch.setattr(Spice, "score", fail)
    evaluate(EvalConfig(data=data, run="r", spice=True))
    assert "warning: SPICE is left out: no memory" in capsys.readouterr().err
    assert "SPICE" not in written(data, "test-beam3", "metrics")
    monkeypatch.setattr(Spice, "score", lambda self, captions: np.full(10, 0.25))
    evaluate(EvalConfig(data=data, run="r", spice=True))
    assert written(data, "test-beam3", "metrics")["SPICE"] == 0.25


def test_optional_metric_that_cannot_run_is_an_error_that_says_how_to_install_it(
    data, scorers, monkeypatch
) -> None:
    monkeypatch.setattr(Spice, "explain_absence", lambda self: "no parser. Fetch it with: FETCH")
    with pytest.raises(ScorerError, match=r"SPICE cannot be computed: no parser\. Fetch it"):
        evaluate(EvalConfig(data=data, run="r", spice=True))
    with pytest.raises(MissingArtifactError, match=r"holds no CLIP model; expected config\.json"):
        evaluate(EvalConfig(data=data, run="r", clip=data))
    assert not scorers and not (data / "runs/r/eval").exists()  # refused before decoding


def test_captions_are_in_cocos_result_format(evaluated) -> None:
    captions = written(evaluated, "test-beam3")
    assert [entry["image_id"] for entry in captions] == ids_of(evaluated, "test")
    assert all(list(entry) == ["image_id", "caption"] for entry in captions)
    texts = [entry["caption"] for entry in captions]
    assert all(text and text == text.strip().lower() for text in texts)
    assert not any("<" in text for text in texts)
    assert len(set(texts)) > 1


def test_scores_are_the_official_scores_of_the_written_captions(evaluated, capsys) -> None:
    # The references are as people wrote them, with capitals and full stops.
    path = evaluated / "scenes/captions/captions.parquet"
    texts = chain.from_iterable(
        read_references(path, "caption", ids_of(evaluated, "test")).values()
    )
    assert any(text.endswith(".") or text[0].isupper() for text in texts)
    evaluate(EvalConfig(data=evaluated, run="r", official=True))  # it is up to date
    assert "pycocoevalcap's scores are equal; the largest difference is" in capsys.readouterr().out


def test_a_score_unlike_pycocoevalcaps_is_an_error(data, monkeypatch) -> None:
    def score_with_java(references: object, hypotheses: Mapping[int, str]) -> OfficialScores:
        native = score_captions(references, hypotheses)
        each = native.images.of_each()
        each["CIDEr"] = each["CIDEr"] + 2e-6
        scores = native.images.of_all()
        return OfficialScores(scores, each, native.references, native.hypotheses)

    monkeypatch.setattr(evaluate_module, "find_java", lambda: None)
    monkeypatch.setattr(evaluate_module, "score_with_java", score_with_java)
    with pytest.raises(ScorerError, match=r"--official: CIDEr is .* by 2\.0e-06\. Run without"):
        evaluate(EvalConfig(data=data, run="r", official=True))
    assert written(data, "test-beam3", "metrics")["num_images"] == 10  # the native scores remain


def test_official_without_java_fails_before_the_images_are_captioned(data, monkeypatch) -> None:
    def find_java() -> Path:
        raise ScorerError("there is no Java")

    monkeypatch.setattr(evaluate_module, "find_java", find_java)
    with pytest.raises(ScorerError, match="there is no Java"):
        evaluate(EvalConfig(data=data, run="r", official=True))
    assert not (data / "runs/r/eval").exists()


def test_manifest_records_the_evaluation(evaluated) -> None:
    manifest = written(evaluated, "test-beam3", "manifest")
    assert manifest["stage"] == "eval"
    assert manifest["config"]["run"] == "r" and manifest["config"]["split"] == "test"
    assert manifest["counts"] == {"num_images": 10}
    assert set(manifest["outputs"]) == {"metrics.json", "captions.json", "scores.npz"}
    assert manifest["details"] == {"dataset": "scenes"}
    assert "best.safetensors" in manifest["inputs"]


def test_second_eval_is_up_to_date_and_prints_the_scores_again(data, scorers, capsys) -> None:
    first = evaluate(EvalConfig(data=data, run="r"))
    before = (data / "runs/r/eval/test-beam3/captions.json").stat().st_mtime_ns
    capsys.readouterr()
    # These options do not change the captions.
    assert evaluate(EvalConfig(data=data, num_samples=1, batch_size=3, device="cpu")) == first
    shown = capsys.readouterr().out
    assert "up to date" in shown and "CIDEr" in shown and "METEOR" in shown
    assert (data / "runs/r/eval/test-beam3/captions.json").stat().st_mtime_ns == before
    assert len(scorers) == 1


def test_each_beam_size_and_split_has_its_own_folder(data, scorers) -> None:
    for options in ({}, {"beam": 1}, {"beam": 5}, {"split": "val"}, {"split": "train"}):
        evaluate(EvalConfig(data=data, run="r", **options))
    folders = sorted(path.name for path in (data / "runs/r/eval").iterdir())
    assert folders == ["test-beam1", "test-beam3", "test-beam5", "train-beam3", "val-beam3"]
    assert [e["image_id"] for e in written(data, "val-beam3")] == ids_of(data, "val")
    assert len(written(data, "train-beam3")) == 40
    assert list(scorers[-1].references) == ids_of(data, "train")


def test_other_decoding_options_do_not_overwrite_results(data, scorers) -> None:
    evaluate(EvalConfig(data=data, run="r"))
    before = written(data, "test-beam3")
    for options in (
        {"length_penalty": 0.0},
        {"max_length": 3},
        {"min_length": 12},
        {"beam": 4, "beam_groups": 2},
        {"sample": True, "top_p": 0.9},
    ):
        evaluate(EvalConfig(data=data, run="r", **options))
    assert len(scorers) == 6
    assert written(data, "test-beam3") == before
    lengths = {
        path.name: [len(entry["caption"].split()) for entry in written(data, path.name)]
        for path in (data / "runs/r/eval").iterdir()
    }
    assert sorted(lengths) == [
        *("test-beam3", "test-beam3-max3", "test-beam3-min12", "test-beam3-penalty0.0"),
        *("test-beam4-groups2-diversity0.5", "test-sample-top0.9"),
    ]
    assert max(lengths["test-beam3-max3"]) == 3 and min(lengths["test-beam3-min12"]) >= 12


@pytest.mark.parametrize("options", [{"beam": 5}, {"sample": True, "temperature": 2.0}], ids=str)
def test_nbest_lists_captions_best_first(data, scorers, options: dict[str, object]) -> None:
    config = EvalConfig(data=data, run="r", n_best=4, length_penalty=0.0, **options)
    manifest = evaluate(config)
    folder = f"test-{config.decoding_name}"
    assert "nbest.json" in manifest.outputs
    best = {entry["image_id"]: entry["caption"] for entry in written(data, folder)}
    listed = written(data, folder, "nbest")
    assert [entry["image_id"] for entry in listed] == list(best)
    assert max(len(entry["captions"]) for entry in listed) > 1
    for entry in listed:
        texts = [found["caption"] for found in entry["captions"]]
        log_probs = [found["log_prob"] for found in entry["captions"]]
        assert texts[0] == best[entry["image_id"]]
        assert 1 <= len(set(texts)) == len(texts) <= 4
        assert log_probs == sorted(log_probs, reverse=True) and log_probs[0] < 0


@pytest.fixture(scope="module")
def several(trained, tmp_path_factory) -> Path:
    """`trained` with a second run `s`, an LSTM; read-only."""
    data = Path(shutil.copytree(trained, tmp_path_factory.mktemp("several") / "data"))
    sizes = {"hidden_size": 16, "embed_size": 16, "batch_size": 32, "epochs": 1}
    train(TrainConfig(data=data, dataset="scenes", run="s", cell="lstm", **sizes))
    return data


def ensemble_captions(data: Path, names: str, folder: str = "test-beam3"):
    path = data / "ensembles" / names / "eval" / folder / "captions.json"
    return json.loads(path.read_text("utf-8"))


def test_wide_beams_decode_fewer_images_together(data, scorers, monkeypatch) -> None:
    sizes, look = [], ShowTell.init_state
    monkeypatch.setattr(
        ShowTell, "init_state", lambda self, *args: sizes.append(len(args[0])) or look(self, *args)
    )
    monkeypatch.setattr(decoding, "MAX_ROWS", 12)
    evaluate(EvalConfig(data=data, run="r", beam=4))
    assert sizes == [3, 3, 3, 1]


def test_eval_prints_which_run_it_chose_and_whether_it_is_unfinished(data, scorers, capsys) -> None:
    evaluate(EvalConfig(data=data, run="r"))
    assert capsys.readouterr().err == ""
    (data / "runs/r/manifest.json").unlink()
    evaluate(EvalConfig(data=data))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Using the newest run, r; choose another with --run."
    assert f"Continue it with 'showtell train --run r --resume --data {data}'" in lines[1]


def test_newest_run_of_a_dataset_is_evaluated(data, scorers) -> None:
    assert evaluate(EvalConfig(data=data, dataset="scenes")).config["run"] == "r"
    with pytest.raises(MissingArtifactError, match=r"no run of flickr8k with weights"):
        evaluate(EvalConfig(data=data, dataset="flickr8k"))


def test_run_of_another_dataset_is_an_error(data, scorers) -> None:
    with pytest.raises(MissingArtifactError, match="no run 'r' of nonsense with weights"):
        evaluate(EvalConfig(data=data, run="r", dataset="nonsense"))


def test_ensemble_of_a_run_with_itself_equals_the_run(data, scorers) -> None:
    evaluate(EvalConfig(data=data, run="r", precision="fp32"))
    shutil.copytree(data / "runs/r", data / "runs/same")
    evaluate(EvalConfig(data=data, run=["same", "r"], precision="fp32"))
    assert ensemble_captions(data, "r+same") == written(data, "test-beam3")


def test_ensemble_of_different_cells_has_its_own_folder(
    several, tmp_path, scorers, showtell
) -> None:
    data = Path(shutil.copytree(several, tmp_path / "data"))
    args = ("eval", "--run", "s", "--run", "r", "--num-samples", 1, "--data", data)
    status, output = showtell(*args)
    assert status == 0 and "eval r+s test-beam3" in output
    captions = ensemble_captions(data, "r+s")
    assert [entry["image_id"] for entry in captions] == ids_of(data, "test")
    assert "up to date" in showtell(*args)[1] and len(scorers) == 1
    assert not (data / "runs/r/eval").exists()
    # Status lists it; it is not a run; it is stale when a member has changed.
    line = r"eval +ensembles/r\+s/eval/test-beam3 +"
    assert re.search(line + "done", showtell("status", "--data", data)[1])
    assert sorted(run_names(data)) == ["r", "s"]
    shutil.copy(data / "runs/r/best.safetensors", data / "runs/s/best.safetensors")
    status_module.hash_if_present.cache_clear()
    assert "s/best.safetensors changed" in " ".join(
        stage.state for stage in find_stages(data) if "ensembles" in stage.path.parts
    )


def test_run_with_attention_is_evaluated_alone_and_in_an_ensemble(
    grid_scenes, scorers, showtell
) -> None:
    sizes = {"hidden_size": 16, "embed_size": 16, "batch_size": 64, "epochs": 1, "views": 2}
    for run, attention in (("p", "none"), ("a", "soft")):
        options = {"run": run, "attention": attention, **sizes}
        train(TrainConfig(data=grid_scenes, dataset="scenes", **options))
    for runs, folder in ((["a"], "runs/a"), (["a", "p"], "ensembles/a+p")):
        args = [arg for run in runs for arg in ("--run", run)]
        status, output = showtell("eval", *args, "--beam", 2, "--data", grid_scenes)
        assert status == 0, output
        path = grid_scenes / folder / "eval/test-beam2/captions.json"
        captions = json.loads(path.read_text("utf-8"))
        assert [entry["image_id"] for entry in captions] == ids_of(grid_scenes, "test")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("vocab_sha256", "0" * 64, "vocabulary"), ("dataset", "other", "dataset")],
)
def test_runs_with_different_datasets_or_vocabularies_are_an_error(
    several, tmp_path, scorers, monkeypatch, name: str, value: str, what: str
) -> None:
    data = Path(shutil.copytree(several, tmp_path / "data"))
    (data / "runs/s/manifest.json").unlink()
    replace(RunConfig.read(data / "runs/s"), **{name: value}).write(data / "runs/s")
    if name == "dataset":
        (data / "other").symlink_to(data / "scenes")
    with pytest.raises(MismatchError, match=rf"Runs r and s cannot decode together: their {what}"):
        evaluate(EvalConfig(data=data, run=["r", "s"]))
    assert not (data / "ensembles").exists() and not scorers


def test_other_weights_are_evaluated_again(data, scorers, amplify_image) -> None:
    evaluate(EvalConfig(data=data, run="r"))
    amplify_image(data, 1.5)
    evaluate(EvalConfig(data=data, run="r"))
    assert len(scorers) == 2


def test_batches_do_not_change_the_captions(data, scorers) -> None:
    evaluate(EvalConfig(data=data, run="r", precision="fp32"))
    whole = written(data, "test-beam3")
    shutil.rmtree(data / "runs/r/eval")
    evaluate(EvalConfig(data=data, run="r", precision="fp32", batch_size=3))
    assert written(data, "test-beam3") == whole


def test_dataset_without_a_test_split_is_evaluated_on_val(
    data, scorers, random_weights, capsys
) -> None:
    prepare_again(data, random_weights, keep=lambda row: not row.rstrip().endswith(",test"))
    evaluate(EvalConfig(data=data, run="r"))
    assert [e["image_id"] for e in written(data, "val-beam3")] == ids_of(data, "val")
    with pytest.raises(MissingArtifactError) as caught:
        evaluate(EvalConfig(data=data, run="r", split="test"))
    assert "has no test images" in str(caught.value)
    assert "Set --split to one of train, val." in str(caught.value)
    assert not (data / "runs/r/eval/test-beam3").exists()


def test_unreadable_images_are_left_out_with_a_warning(
    data, scorers, random_weights, capsys
) -> None:
    images = read_images(data / "scenes/captions/images.parquet")
    gone = ids_of(data, "test")[4]
    name = images.file_names[images.image_ids.tolist().index(gone)]
    (data / "scenes/raw" / name).write_bytes(b"no picture")
    prepare_again(data, random_weights)
    capsys.readouterr()
    manifest = evaluate(EvalConfig(data=data, run="r"))
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 1 of 10 images have no features")
    assert warning.count("\n") == 1
    captioned = [entry["image_id"] for entry in written(data, "test-beam3")]
    assert captioned == [image_id for image_id in ids_of(data, "test") if image_id != gone]
    assert list(scorers[0].references) == captioned
    assert written(data, "test-beam3", "metrics")["num_images"] == 9
    assert manifest.counts == {"num_images": 9}


def test_samples_are_shown_with_a_reference(data, scorers, capsys) -> None:
    evaluate(EvalConfig(data=data, run="r", num_samples=2))
    shown = capsys.readouterr().out
    captions = {e["image_id"]: e["caption"] for e in written(data, "test-beam3")}
    assert shown.count("references: ") == 2
    assert any(f"\n  {caption}\n" in shown for caption in captions.values())
    evaluate(EvalConfig(data=data, run="r", num_samples=0))
    assert "references: " not in capsys.readouterr().out
    evaluate(EvalConfig(data=data, run="r", num_samples=99))
    assert capsys.readouterr().out.count("references: ") == 10


def test_captions_are_kept_when_scoring_fails(data, scorers, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ScorerError("no synonyms")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "score_captions", fail)
        with pytest.raises(ScorerError, match="no synonyms"):
            evaluate(EvalConfig(data=data, run="r"))
    assert len(written(data, "test-beam3")) == 10
    assert not (data / "runs/r/eval/test-beam3/metrics.json").exists()
    # It does not count as finished.
    evaluate(EvalConfig(data=data, run="r"))
    assert written(data, "test-beam3", "metrics")["num_images"] == 10


def change_features(data: Path, section: str, name: str, value: object) -> None:
    """Change a value in the manifest of the features."""
    path = next(data.glob("scenes/features/*/manifest.json"))
    manifest = unseal(json.loads(path.read_text("utf-8")))
    manifest[section][name] = value
    path.write_text(json.dumps(seal(manifest)), "utf-8")


@pytest.mark.parametrize(
    ("section", "name", "value", "named"),
    [
        ("inputs", "weights", "0" * 64, "has weights_sha256 '000"),
        (
            "config",
            "encoder",
            "resnet34",
            "has encoder 'resnet34', but the run was trained on",
        ),
        ("details", "transform", {"crop_size": 64}, "has transform {'crop_size': 64}"),
    ],
)
def test_features_of_another_network_are_an_error(
    data, scorers, section: str, name: str, value: object, named: str
) -> None:
    change_features(data, section, name, value)
    with pytest.raises(MismatchError) as caught:
        evaluate(EvalConfig(data=data, run="r"))
    assert named in str(caught.value) and "showtell features" in str(caught.value)
    assert not scorers


def test_missing_features_are_an_error_with_the_command(data, scorers) -> None:
    shutil.rmtree(data / "scenes/features")
    with pytest.raises(MissingArtifactError, match="Run 'showtell features --dataset scenes"):
        evaluate(EvalConfig(data=data, run="r"))


def test_another_vocabulary_is_an_error(data, scorers) -> None:
    prepare(PrepareConfig(data=data, dataset="scenes", vocab_size=10))
    with pytest.raises(MismatchError, match=r"the run r was trained with .*showtell prepare"):
        evaluate(EvalConfig(data=data, run="r"))


def test_unprepared_dataset_is_an_error_with_the_command(data, scorers) -> None:
    shutil.rmtree(data / "scenes/captions")
    with pytest.raises(MissingArtifactError, match="Run 'showtell prepare --dataset scenes"):
        evaluate(EvalConfig(data=data, run="r"))


def test_unknown_run_is_an_error(data, scorers) -> None:
    with pytest.raises(MissingArtifactError, match=r"no run 'x' with weights \(found: r\)"):
        evaluate(EvalConfig(data=data, run="x"))


@pytest.mark.parametrize("options", [{"beam": 4}, {"sample": True, "n_best": 4}], ids=str)
def test_consensus_chooses_among_the_decoded_captions(
    data, scorers, options: dict[str, object]
) -> None:
    evaluate(EvalConfig(data=data, run="r", **(options | {"n_best": 4})))
    found = nbest_of(data, EvalConfig(**(options | {"n_best": 4})))
    chosen = EvalConfig(data=data, run="r", consensus=8, **options)
    evaluate(chosen)
    captions = written(data, f"test-{chosen.decoding_name}")
    plain = {image_id: captions[0] for image_id, captions in found.items()}
    assert all(entry["caption"] in found[entry["image_id"]] for entry in captions)
    assert any(entry["caption"] != plain[entry["image_id"]] for entry in captions)


def test_pooled_runs_search_separately_and_share_the_consensus(several, tmp_path, scorers) -> None:
    data = Path(shutil.copytree(several, tmp_path / "data"))
    options = {"data": data, "split": "test", "beam": 3, "n_best": 3, "precision": "fp32"}
    alone: dict[int, dict[str, float]] = defaultdict(dict)
    for run in ("r", "s"):
        evaluate(EvalConfig(run=run, **options))
        for entry in written(data, "test-beam3-nbest3", "nbest", run):
            for found in entry["captions"]:
                known = alone[entry["image_id"]].get(found["caption"], -math.inf)
                alone[entry["image_id"]][found["caption"]] = max(known, found["log_prob"])
    pooled = EvalConfig(run=["r", "s"], consensus=8, pool=True, **options)
    assert pooled.decoding_name == "beam3-nbest3-consensus8-pool"
    evaluate(replace(pooled, batch_size=7))  # does not divide the number of images
    path = data / "ensembles/r+s/eval" / f"test-{pooled.decoding_name}" / "nbest.json"
    listed = json.loads(path.read_text("utf-8"))
    assert [entry["image_id"] for entry in listed] == ids_of(data, "test")
    assert any(len(found) > 3 for found in alone.values())
    for entry in listed:
        scores = [found["score"] for found in entry["captions"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3
        for found in entry["captions"]:
            expected = alone[entry["image_id"]][found["caption"]]
            assert found["log_prob"] == pytest.approx(expected, abs=1e-4)


def nbest_of(data: Path, config: EvalConfig) -> dict[int, list[str]]:
    return {
        entry["image_id"]: [caption["caption"] for caption in entry["captions"]]
        for entry in written(data, f"test-{config.decoding_name}", "nbest")
    }


def test_consensus_works_on_the_train_split(data, scorers) -> None:
    evaluate(EvalConfig(data=data, run="r", split="train", beam=4, consensus=39, n_best=4))
    listed = written(data, "train-beam4-nbest4-consensus39", "nbest")
    assert [entry["image_id"] for entry in listed] == ids_of(data, "train")


def test_views_are_averaged_like_the_members_of_an_ensemble(
    prepared_scenes, random_weights, scorers, tmp_path
) -> None:
    data = Path(shutil.copytree(prepared_scenes, tmp_path / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(FeaturesConfig(data=data, dataset="scenes", views=2, grid=True, **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 1}
    for attention in ("none", "adaptive"):
        run = f"r-{attention}"
        train(TrainConfig(data=data, dataset="scenes", run=run, attention=attention, **sizes))
        config = EvalConfig(data=data, run=run, views=2, beam=2, precision="fp32")
        evaluate(config)
        folder = data / f"runs/{run}/eval/test-beam2-views2"
        captions = json.loads((folder / "captions.json").read_text("utf-8"))

        _, vocab, decoder = load_run(data / "runs" / run, torch.device("cpu"))
        store = FeatureStore.load(find_features(data / "scenes"))
        rows = store.rows(ids_of(data, "test"))
        if attention == "none":
            seen = [store.views[rows, view] for view in range(2)]
        else:
            seen = [store.gather_grid(rows, torch.full_like(rows, view)) for view in range(2)]
        together = Ensemble([decoder.eval(), decoder])
        with torch.inference_mode():
            found = beam_search(together, together.init_state(seen), DecodingOptions(beam=2))
        assert [vocab.decode(best[0].token_ids) for best in found] == [
            entry["caption"] for entry in captions
        ]


def test_missing_views_are_an_error_with_the_command(data, scorers) -> None:
    with pytest.raises(MissingArtifactError, match=r"has 1 views.*'showtell features .*--views 3"):
        evaluate(EvalConfig(data=data, run="r", views=3))

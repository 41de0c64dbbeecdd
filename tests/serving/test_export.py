import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.runs.layout import BEST_NAME, CONSENSUS_NAME, MODEL_NAME
from showtell.model.runs.tensors import read_tensors
from showtell.model.train import train
from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.prepare import prepare
from showtell.pipeline.stage.errors import (
    ConfigError,
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
)
from showtell.serving import load as load_module
from showtell.serving.captioner import Captioner
from showtell.serving.config import ExportConfig
from showtell.serving.export import command_for, export
from showtell.serving.neighbors import quantize

FILES = ["README.md", "config.json", "manifest.json", "model.safetensors", "vocab.json"]


@pytest.fixture
def load(random_weights):
    """Load a model whose encoder has the random weights, in float32 on the CPU."""

    def load_model(model: str | Path, **options: object) -> Captioner:
        fixed = {"weights": random_weights, "device": "cpu", "precision": "fp32"}
        return load_module.load(model, **(fixed | options))

    return load_model


@pytest.fixture
def export_run(data, tmp_path):
    """Export run `r`, and return the folder of the bundle."""

    def run(**options: object) -> Path:
        out = tmp_path / "bundle"
        export(ExportConfig(data=data, run="r", output=out, **options))
        return out

    return run


def test_bundle_captions_like_its_run_without_the_data_folder(
    export_run, captioner, image_paths, tmp_path, load
) -> None:
    bundle = export_run()
    assert sorted(path.name for path in bundle.iterdir() if path.name[0] != ".") == FILES
    alone = load(bundle, data=tmp_path / "nothing")
    expected = captioner.caption(image_paths, beam=5, length_penalty=1.0)
    assert alone.caption(image_paths) == expected  # the bundle's decoding options
    assert alone.caption(image_paths, beam=2, length_penalty=0.5) == captioner.caption(
        image_paths, beam=2, length_penalty=0.5
    )


def test_decoding_options_of_the_bundle_are_defaults(export_run, load) -> None:
    bundle = load(export_run(beam=2, length_penalty=0.3))
    assert bundle.decoding_options().beam == 2
    assert bundle.decoding_options(beam=4).beam == 4
    assert bundle.decoding_options(beam=4).length_penalty == 0.3
    assert bundle.decoding_options(preset="consensus").beam == 50


def test_half_precision_takes_half_the_space(export_run, data, tmp_path, load) -> None:
    tensors, _ = read_tensors(export_run(half=True) / MODEL_NAME)
    originals, _ = read_tensors(data / "runs/r" / BEST_NAME)
    assert tensors.keys() == originals.keys()
    for name, tensor in originals.items():
        matrix = tensor.ndim > 1
        assert tensors[name].dtype == (torch.float16 if matrix else torch.float32)
        torch.testing.assert_close(tensors[name].float(), tensor, rtol=1e-3, atol=1e-5)
    sizes = [path.stat().st_size for path in (tmp_path / "bundle" / MODEL_NAME,)]
    assert sizes[0] < 0.6 * (data / "runs/r" / BEST_NAME).stat().st_size
    decoder = load(tmp_path / "bundle").decoder
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}


def test_tied_weights_are_saved_once(export_run) -> None:
    folder = export_run()
    run = json.loads((folder / "config.json").read_text("utf-8"))
    tensors, _ = read_tensors(folder / MODEL_NAME)
    vocab_size, width = run["decoder"]["vocab_size"], run["decoder"]["embed_size"]
    assert run["decoder"]["tie_embeddings"]
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    assert shapes.count((vocab_size, width)) == 1
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert (folder / MODEL_NAME).stat().st_size < total + 4096


def test_bundle_names_no_folder_of_this_machine(export_run, data, tmp_path) -> None:
    bundle = export_run(consensus=True)
    for path in bundle.iterdir():
        content = path.read_bytes()
        for folder in (tmp_path, data, Path.home(), Path.cwd()):
            assert str(folder).encode() not in content, path
    config = json.loads((bundle / "config.json").read_text("utf-8"))
    assert config["backbone"]["weights"] == "random.pth"


@pytest.mark.parametrize("weights", ["/home/me/x.pth", "../me/x.pth"])
def test_recorded_command_names_no_folder_of_this_machine(tmp_path, weights: str) -> None:
    config = ExportConfig(run="r", output=tmp_path / "my model", onnx=True, weights=weights)
    assert command_for(config) == "export r 'my model' --onnx --weights x.pth"


def test_export_again_is_up_to_date(export_run, capsys) -> None:
    bundle = export_run()
    before = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    capsys.readouterr()
    export_run()
    assert capsys.readouterr().out.endswith("bundle is up to date.\n")
    assert {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()} == before
    export_run(half=True)
    assert (bundle / MODEL_NAME).stat().st_mtime_ns != before[MODEL_NAME]


@pytest.mark.parametrize("changed", ["captions", "features"])
def test_consensus_is_packed_again_after_a_change(
    data, prepared_scenes, random_weights, tmp_path, capsys, changed: str
) -> None:
    copy, out = Path(shutil.copytree(data, tmp_path / "data")), tmp_path / "bundle"
    config = ExportConfig(data=copy, run="r", output=out, consensus=True)
    export(config)
    packed, _ = read_tensors(out / CONSENSUS_NAME)
    if changed == "captions":
        table = copy / "scenes/raw/captions.csv"
        table.write_text(table.read_text("utf-8").replace(" a ", " the "), "utf-8")
        prepare(PrepareConfig(data=copy, dataset="scenes", min_count=1))
    else:
        options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
        extract(FeaturesConfig(data=copy, dataset="scenes", precision="fp32", views=2, **options))
    capsys.readouterr()
    export(config)
    assert "up to date" not in capsys.readouterr().out
    found, _ = read_tensors(out / CONSENSUS_NAME)
    assert any(not torch.equal(found[name], packed[name]) for name in packed)


def test_other_files_are_never_overwritten(export_run, write_foreign_model, tmp_path) -> None:
    contents = write_foreign_model(tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"is not a bundle\. Give a new or empty folder"):
        export_run()
    files = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    assert files == contents
    shutil.rmtree(tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"is not a bundle\. Give a new or empty folder"):
        export_run()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["thesis.tex"]


def test_bundle_of_another_run_is_never_overwritten(export_run, data, tmp_path) -> None:
    copy = Path(shutil.copytree(data / "runs/r", tmp_path / "data/runs/other")).parents[1]
    bundle = export_run()
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    config = ExportConfig(data=copy, run="other", output=bundle)
    expected = r"holds another bundle, made by 'showtell export r'\. Delete the folder, or give"
    for name in ("manifest.json", ".manifest.json"):  # the second time, it is unfinished
        with pytest.raises(ConfigError, match=expected):
            export(config)
        assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
        (bundle / name).unlink()
        del before[name]
    with pytest.raises(ConfigError, match="is not a bundle"):
        export(config)


@pytest.mark.parametrize("name", ["vocab.json", "config.json", "model.safetensors", "README.md"])
def test_stopped_export_continues(export_run, tmp_path, monkeypatch, name: str) -> None:
    def stop_before(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise KeyboardInterrupt
        return replace_file(self, target)

    replace_file = Path.replace
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop_before)
        with pytest.raises(KeyboardInterrupt):
            export_run()
    assert not (tmp_path / "bundle" / name).exists()
    bundle = export_run()
    assert sorted(path.name for path in bundle.iterdir() if path.name[0] != ".") == FILES


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
def test_damaged_bundle_is_refused(export_run, name: str, load) -> None:
    bundle = export_run()
    path = bundle / name
    content = bytearray(path.read_bytes())
    for position in range(9, len(content), max(1, len(content) // 20)):
        flipped = content.copy()
        flipped[position] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=f"Run 'showtell export r {bundle}'"):
            load(bundle)
    path.unlink()
    with pytest.raises(MissingArtifactError, match="showtell export"):
        load(bundle)


def test_verify_reads_every_file_of_a_bundle(export_run, showtell, showtell_json) -> None:
    bundle = export_run(consensus=True)
    (bundle / "notes.txt").write_text("not part of the bundle")
    status, found = showtell_json("verify", bundle)
    assert status == 0 and found["num_files"] == 6 and found["problems"] == []
    names = [path.name for path in bundle.glob("[!.]*") if path.suffix in (".json", ".safetensors")]
    for name in [*names, "README.md"]:
        path = bundle / name
        content = path.read_bytes()
        path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        status, found = showtell_json("verify", path)
        assert status == 1 and [problem["path"] for problem in found["problems"]] == [str(path)]
        assert found["problems"][0]["command"] == f"showtell export r {bundle} --consensus"
        path.write_bytes(content)
    (bundle / "vocab.json").unlink()
    status, output = showtell("verify", bundle)
    assert status == 1 and "missing: " in output


@pytest.mark.parametrize("attention", ["none", "soft"])
def test_consensus_of_a_bundle_captions_like_the_run(
    prepared_scenes, random_weights, scorers, tmp_path, attention: str, load
) -> None:
    data = Path(shutil.copytree(prepared_scenes, tmp_path / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    several = {"views": 3, "grid": attention != "none"}
    extract(FeaturesConfig(data=data, dataset="scenes", precision="fp32", **several, **options))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 4}
    train(TrainConfig(data=data, dataset="scenes", run="r", attention=attention, **sizes))
    out = tmp_path / "bundle"
    export(ExportConfig(data=data, run="r", output=out, consensus=True))
    decoding = {"beam": 4, "views": 3, "consensus": 5}
    run = load("r", data=data)
    bundle = load(
        out, data=tmp_path / "nothing", device="cpu", precision="fp32", weights=random_weights
    )
    images = sorted((data / "scenes/raw/images").iterdir())
    expected = run.caption(images, **decoding, length_penalty=1.0)
    found = bundle.caption(images, **decoding)
    # The features are rounded to int8, so two captions of almost equal score may swap.
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.95
    assert expected != run.caption(images, beam=4, views=3, length_penalty=1.0)
    with pytest.raises(MismatchError, match="needs --views 3, got 1"):
        bundle.caption(images[0], beam=4, consensus=5)


def test_features_in_int8_keep_their_direction() -> None:
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).relu()
    features[3] = 0
    values, scales = quantize(features)
    restored = values.float() * scales[:, None]
    assert values.dtype == torch.int8 and torch.equal(restored[3], features[3])
    cosine = torch.cosine_similarity(restored, features)
    cosine[3] = 1
    assert cosine.min() > 0.9999


def test_model_card_has_scores_and_options(export_run, data, scorers) -> None:
    evaluate(EvalConfig(data=data, run="r", split="val", beam=2, device="cpu"))
    metrics = json.loads((data / "runs/r/eval/val-beam2/metrics.json").read_text("utf-8"))
    card = (export_run(license="cc-by-4.0") / "README.md").read_text("utf-8")
    low, high = metrics["intervals"]["CIDEr"]
    assert f"{100 * metrics['CIDEr']:.1f} ({100 * low:.1f} to {100 * high:.1f})" in card
    assert "| `--hidden-size` | 32 |" in card
    assert "license: cc-by-4.0" in card.split("---")[1]
    rows = [line for line in card.splitlines() if line.startswith("| val | beam2 |")]
    assert len(rows) == 1 and rows[0].count("|") == 4 + len(metrics["intervals"])


def test_model_card_has_the_license_and_the_paragraph_of_the_user(export_run) -> None:
    folder = export_run(license="Research use only", about="Knows *three* colors.")
    card = (folder / "README.md").read_text("utf-8")
    assert "license: other\nlicense_name: research-use-only\n" in card.split("---")[1]
    assert "\n\nKnows *three* colors.\n\n## Use" in card
    assert "License: Research use only." in card


def test_unknown_run_is_refused(data, tmp_path) -> None:
    with pytest.raises(MissingArtifactError, match="no run 'nosuch'"):
        export(ExportConfig(data=data, run="nosuch", output=tmp_path / "x"))


def test_features_are_needed_for_consensus(data, tmp_path) -> None:
    copy = Path(shutil.copytree(data / "runs", tmp_path / "data/runs")).parent
    with pytest.raises(MissingArtifactError, match="features"):
        export(ExportConfig(data=copy, run="r", output=tmp_path / "x", consensus=True))
    assert not (tmp_path / "x").exists()

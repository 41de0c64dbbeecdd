"""The documentation is true: links resolve, options exist, and the examples run."""

import ast
import importlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from showtell.cli import app
from showtell.cli_command import configs
from showtell.model.sweeps.plan import read_plan
from showtell.pipeline.captions import read_captions
from showtell.pipeline.stage.config_file import read_config_file

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data/README.md"]
# Options in the docs that belong to other programs.
FOREIGN_OPTIONS = {
    "--logdir",
    "--strict",
    "--dry-run",
    "--faults",
    "--flips",
    "--every",
    "--rounds",
}
FOREIGN_OPTIONS |= {"--nproc-per-node", "--limit-mb", "--steps"}  # torchrun's, bench/scale_*.py's

Run = Callable[..., tuple[int, str]]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def commands(page: Path) -> list[list[str]]:
    """The arguments of each `showtell` command in the bash blocks of a page."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = (shlex.split(line.partition(" > ")[0], comments=True) for line in lines)
    return [arguments[1:] for arguments in words if arguments[:1] == ["showtell"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    links += re.findall(r"<img[^>]* src=\"([^\"]+)\"", prose(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_valid_options(
    page: Path, showtell: Run, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").touch()
    for arguments in commands(page):
        status, output = showtell(*arguments, "--print-config")
        assert status == 0, output


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_text_exist(page: Path) -> None:
    command = get_command(app)
    stages = [command, *command.commands.values()]  # type: ignore[attr-defined]
    options = {
        name
        for stage in stages
        for parameter in stage.params
        for name in [*parameter.opts, *parameter.secondary_opts]
    }
    code = " ".join(re.findall(r"`([^`]+)`", prose(page)))
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code))
    assert mentioned - options - FOREIGN_OPTIONS - {"--help"} == set()


def test_file_tree_of_the_readme_exists() -> None:
    (tree,) = (block for block in blocks(ROOT / "README.md", "") if block.startswith("cli.py "))
    folder = ROOT
    for line in tree.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT / names[0] if names[0].endswith("/") else ROOT
            assert (ROOT / names[0]).exists(), line
        else:
            assert all((folder / name).exists() for name in names), line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_config_files_have_options_that_exist(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        path = tmp_path / "run.toml"
        path.write_text(block, "utf-8")
        if "[grid]" in block:
            assert read_plan(path, tmp_path).combinations
            continue
        for command in ("train", "eval"):
            assert read_config_file(path, command, configs)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    text = prose(page) + "".join(blocks(page, "bash"))
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for names in re.findall(r"(?:`|^)make ((?:[a-z][\w-]* ?)+)", text, re.MULTILINE):
        assert set(names.split()) <= targets, names


def test_commands_of_the_guide_run(
    showtell: Run, scorers, random_weights: Path, tmp_path: Path, monkeypatch
) -> None:
    from showtell.pipeline.datasets.scenes import draw_scenes

    # Small images and an untrained network: the guide's own options take minutes.
    small = ("--encoder", "resnet18", "--weights", random_weights, "--image-size", 32)
    short = ("--epochs", 1, "--hidden-size", 16, "--embed-size", 16, "--device", "cpu")
    extra = {"features": small, "train": short}
    monkeypatch.delenv("SHOWTELL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    draw_scenes(Path("photos"), num_train=40, num_val=6, num_test=6)
    names = []
    for name, *arguments in commands(ROOT / "docs/guide.md"):
        more = () if "--resume" in arguments else extra.get(name, ())
        status, output = showtell(name, *arguments, *more)
        assert status == 0, output
        names.append(name)
    assert {*names} >= {"prepare", "features", "train", "eval", "caption", "compare", "status"}


def load_example(name: str, folder: Path, monkeypatch) -> Path:
    """Save the file `name` of extending.md in a folder, and import it."""
    (code,) = (
        block
        for block in blocks(ROOT / "docs/extending.md", "python")
        if block.startswith(f'"""{name}: ')
    )
    path = folder / name
    path.write_text(code, "utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    importlib.import_module(path.stem)
    return path


def test_example_of_a_dataset_runs(showtell: Run, tmp_path: Path, monkeypatch) -> None:
    from showtell.pipeline.captions import read_images
    from showtell.pipeline.datasets.registry import READERS
    from showtell.pipeline.datasets.scenes import draw_scenes

    draw_scenes(tmp_path / "photos", num_train=10, num_val=0, num_test=0)
    (tmp_path / "photos/captions.csv").unlink()
    for image in tmp_path.glob("photos/images/*.jpg"):
        image.with_suffix(".txt").write_text("A dog runs.\nA dog on the grass.\n", "utf-8")
    monkeypatch.setitem(READERS, "diary", None)  # restored after the test
    load_example("caption_files.py", tmp_path, monkeypatch)
    data = ("--data", tmp_path / "data", "--dataset", "diary", "--min-count", 1)
    status, output = showtell("prepare", "--source", tmp_path / "photos", *data)
    assert status == 0, output
    images = read_images(tmp_path / "data/diary/captions/images.parquet")
    assert len(images.image_ids) == 10 and {*images.splits} == {"train", "val", "test"}


def test_example_of_an_encoder_computes_features(
    showtell: Run, scenes: Path, tmp_path: Path, monkeypatch
) -> None:
    from showtell.features.encoders import registry

    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES])  # restored after the test
    load_example("pixels.py", tmp_path, monkeypatch)
    options = ("--data", scenes, "--dataset", "scenes", "--encoder", "pixels", "--device", "cpu")
    status, output = showtell("features", *options)
    assert status == 0, output
    manifest = json.loads((scenes / "scenes/features/pixels-default/manifest.json").read_text())
    assert manifest["counts"]["feature_dim"] == 3 * 8 * 8


def test_example_of_a_decoder_trains_and_captions(
    showtell: Run, scenes: Path, tmp_path: Path, monkeypatch
) -> None:
    from showtell.model.decoders.registry import DECODERS

    monkeypatch.setitem(DECODERS, "tiny-transformer", "")  # restored after the test
    example = load_example("tiny_transformer.py", tmp_path, monkeypatch)
    sizes = ("--hidden-size", 64, "--embed-size", 64, "--epochs", 2, "--batch-size", 16)
    options = ("--data", scenes, "--dataset", "scenes", "--run", "r", "--device", "cpu", *sizes)
    # In a process of its own: --attention takes its choices when the command line is imported.
    command = [sys.executable, example, "train", "--attention", "tiny-transformer", *options]
    subprocess.run([*map(str, command)], check=True)
    image = next(scenes.glob("scenes/raw/images/*.jpg"))
    status, output = showtell("caption", "--data", scenes, "--run", "r", "--beam", 3, image)
    assert status == 0 and f"{image}: " in output


def test_example_of_a_metric_runs(
    showtell: Run, scorers, scenes: Path, tmp_path: Path, monkeypatch
) -> None:
    from showtell.model.metrics import registry

    monkeypatch.setattr(registry, "DEFAULT_METRICS", ())  # restored after the test
    load_example("distinct_words.py", tmp_path, monkeypatch)
    sizes = ("--epochs", 1, "--hidden-size", 8, "--embed-size", 8, "--device", "cpu")
    showtell("train", "--data", scenes, "--dataset", "scenes", "--run", "r", *sizes)
    status, output = showtell("eval", "--data", scenes, "--run", "r")
    assert status == 0, output
    metrics = json.loads((scenes / "runs/r/eval/test-beam3/metrics.json").read_text())
    assert 0 <= metrics["Distinct"] <= 1 and "Distinct" in metrics["intervals"]


def test_example_in_chinese_runs(
    showtell: Run, scenes: Path, random_weights: Path, tmp_path: Path, monkeypatch
) -> None:
    """Runs languages.md on fewer scenes, with an untrained network and a short training."""
    monkeypatch.delenv("SHOWTELL_DATA", raising=False)
    monkeypatch.chdir(scenes.parent)  # "data" is a copy of a few prepared scenes
    page, image = ROOT / "docs/languages.md", "data/scenes/raw/images/000051.jpg"
    exec(compile(*blocks(page, "python"), "chinese.py", "exec"), {})
    small = ("--encoder", "resnet18", "--weights", random_weights, "--image-size", 64)
    short = ("--epochs", 6, "--batch-size", 8, "--hidden-size", 64, "--device", "cpu")
    extra = {"features": small, "train": short}
    _, *rest = commands(page)  # the scenes are drawn already
    for name, *arguments in rest:
        if name == "caption":
            arguments[-1] = image
        status, output = showtell(name, *arguments, *extra.get(name, ()))
        assert status == 0, output
        if name == "eval":
            assert "METEOR is left out" in output and "characters per caption" in output
    folder = Path("data/runs/zh/eval/test-beam3")
    captions = [entry["caption"] for entry in json.loads((folder / "captions.json").read_text())]
    assert len(captions) == 10 and re.fullmatch(r"[\u4e00-\u9fff]+", "".join(captions))
    assert output.strip() == f"{image}: {captions[0]}"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "METEOR" not in metrics and metrics["Bleu_1"] > 0.3
    for more in (["report", "zh"], ["export", "zh", "bundle"], ["status"]):
        status, output = showtell(*more)
        assert status == 0, output
    scst = ("--init", "zh", "--scst", "--scst-samples", 2, "--epochs", 1, "--device", "cpu")
    status, output = showtell("train", "--dataset", "scenes-zh", "--run", "rl", *scst)
    assert status == 0, output
    status, output = showtell("caption", "--model", "bundle", *small[2:4], image)
    assert re.fullmatch(rf"{image}: [\u4e00-\u9fff]+", output.strip())


def test_examples_of_the_python_page_run(
    showtell: Run, prepared_grids: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared_grids / "scenes", "data/flickr8k")
    images = sorted(Path("data/flickr8k/raw/images").iterdir())
    for name, image in zip(("dog.jpg", "beach.jpg"), images, strict=False):
        shutil.copy(image, name)
    sizes = ("--epochs", 1, "--hidden-size", 16, "--embed-size", 16, "--attention", "soft")
    options = ("--dataset", "flickr8k", "--run", "gru", "--device", "cpu", *sizes)
    status, output = showtell("train", *options)
    assert status == 0, output
    script = "\n".join(blocks(ROOT / "docs/python.md", "python"))
    names: dict[str, Any] = {}
    exec(compile(script, "docs/python.md", "exec"), names)
    assert len(set(names["texts"])) == 1  # of the same image, from five sources
    assert names["heatmap"].shape == (2, 2) and names["heatmap"].sum() == pytest.approx(1, abs=0.01)
    assert float(names["similarity"][names["row"]]) == pytest.approx(1)
    assert names["loss"].item() < math.log(len(names["train"].vocab))
    assert capsys.readouterr().out.splitlines()[-1].startswith("{'Bleu_1': ")


@pytest.mark.skipif(
    not (ROOT / ".mypy_cache").exists(), reason="without its cache, mypy takes a minute"
)
def test_examples_of_the_python_page_have_correct_types(tmp_path: Path, monkeypatch) -> None:
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "example.py"
    examples = blocks(ROOT / "docs/python.md", "python")
    wrong = 'captioner.caption("dog.jpg", beams=3)  # type: ignore[call-overload]\n'
    script.write_text("\n".join([*examples, wrong]), "utf-8")
    monkeypatch.chdir(ROOT)  # its settings are strict
    output, errors, status = api.run([str(script)])
    assert status == 0, output + errors


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb", "datasets"])
def test_parquet_features_open_in(
    library: str, prepared_scenes: Path, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip(library)
    from showtell.features.shards import read_shard, write_shard

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    shutil.copytree(prepared_scenes / "scenes/captions", "data/flickr8k/captions")
    folder = Path("data/flickr8k/features/resnet50-caffe")
    shards = [read_shard(path) for path in sorted(prepared_scenes.glob("scenes/features/*/*.h5"))]
    for index, shard in enumerate(shards):
        write_shard(folder / f"part-{index:05}.parquet", shard)
    (folder / "manifest.json").touch()
    (example,) = (
        block
        for block in blocks(ROOT / "docs/formats.md", "python")
        if re.search(rf"^(import|from) {library}\b", block, re.MULTILINE)
    )
    names: dict[str, Any] = {}
    exec(compile(example, "docs/formats.md", "exec"), names)
    ids = np.concatenate([shard.image_ids for shard in shards])
    features = np.concatenate([shard.features for shard in shards])
    if library == "pandas":
        assert np.array_equal(names["features"], features)
        assert np.array_equal(names["table"]["image_id"], ids)
    elif library == "polars":
        captions = read_captions(Path("data/flickr8k/captions/captions.parquet"))
        assert names["features"].dtype == np.float16
        expected = features[np.searchsorted(ids, np.sort(captions.image_ids))]
        assert np.array_equal(np.sort(names["features"], 0), np.sort(expected, 0))
    elif library == "duckdb":
        similarity = dict(names["nearest"])
        assert len(similarity) == 5 and max(similarity.values()) == pytest.approx(1, abs=1e-5)
    else:
        assert np.array_equal(names["batch"].numpy(), features[:4].astype(np.float32))

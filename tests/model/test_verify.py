import errno
import hashlib
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from showtell.model.runs.tensors import read_tensors, write_tensors
from showtell.model.verify import find_checks
from showtell.pipeline.stage.files import locked
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.verify import Check

Run = Callable[..., tuple[int, str]]
RunJson = Callable[..., tuple[int, Any]]

NUM_FLIPS = 5  # over the whole file


@pytest.fixture(scope="module", autouse=True)
def few_scenes() -> Iterator[None]:
    """Make `download` draw 12 scenes."""
    from showtell.pipeline import download

    with pytest.MonkeyPatch.context() as patch:
        small = partial(download.draw_scenes, num_train=8, num_val=2, num_test=2)
        patch.setattr(download, "draw_scenes", small)
        yield


@pytest.fixture(scope="module")
def whole_data(few_scenes, tmp_path_factory, random_weights) -> Path:
    """A data folder with every kind of artifact except evaluations. Copy it back after writing."""
    from showtell.features.config import FeaturesConfig
    from showtell.features.extract import extract
    from showtell.model.config import TrainConfig
    from showtell.model.train import train
    from showtell.pipeline.config import DownloadConfig, PrepareConfig
    from showtell.pipeline.download import download
    from showtell.pipeline.prepare import prepare

    data = tmp_path_factory.mktemp("verify") / "data"
    common: dict[str, Any] = {"data": data, "dataset": "scenes"}
    download(DownloadConfig(**common))
    prepare(PrepareConfig(**common, min_count=1))
    network = {"encoder": "resnet18", "weights": str(random_weights), "shard_size": 7}
    extract(FeaturesConfig(**common, **network, image_size=32))
    grid = {"image_size": 64, "format": "parquet", "grid": True, "views": 2}
    extract(FeaturesConfig(**common, **network, **grid))
    sizes = {"hidden_size": 8, "embed_size": 8, "epochs": 1, "device": "cpu"}
    train(TrainConfig(**common, **sizes, run="r", features="resnet18-random-32"))
    return data


@pytest.fixture
def data(whole_data, tmp_path, scorers, showtell) -> Iterator[Path]:
    """The same with an evaluation, at the same place for every test; restored afterwards."""
    kept = shutil.copytree(whole_data, tmp_path / "kept")
    assert showtell("eval", "--run", "r", "--data", whole_data)[0] == 0
    yield whole_data
    shutil.rmtree(whole_data)
    shutil.move(kept, whole_data)


KINDS = (
    "scenes/raw/captions.csv",
    "scenes/raw/images/000001.jpg",
    "scenes/raw/manifest.json",
    "scenes/captions/images.parquet",
    "scenes/captions/captions.parquet",
    "scenes/captions/vocab.json",
    "scenes/captions/manifest.json",
    "scenes/features/resnet18-random-32/part-00000.h5",
    "scenes/features/resnet18-random-32/manifest.json",
    "scenes/features/resnet18-random-64/part-00001.parquet",
    "scenes/features/resnet18-random-64/part-00001.grid.npy",
    "runs/r/config.json",
    "runs/r/vocab.json",
    "runs/r/best.safetensors",
    "runs/r/last.safetensors",
    "runs/r/metrics.jsonl",
    "runs/r/manifest.json",
    "runs/r/eval/test-beam3/metrics.json",
    "runs/r/eval/test-beam3/captions.json",
    "runs/r/eval/test-beam3/scores.npz",
    "runs/r/eval/test-beam3/manifest.json",
)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_sound_folder_is_verified_without_writing(data, showtell) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    status, output = showtell("verify", "--data", data)
    assert status == 0 and "0 of" in output
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    checked = {check.path for check in find_checks(data)}
    unchecked = {path for path in data.rglob("*") if path.is_file()} - checked
    unchecked = {path.name for path in unchecked if "tensorboard" not in path.parts}
    assert unchecked <= {".lock", ".manifest.json", "curves.png"}


@pytest.mark.parametrize("name", KINDS)
def test_any_flipped_bit_is_found_and_the_command_repairs_it(
    data, showtell: Run, showtell_json: RunJson, name: str
) -> None:
    path = data / name
    original = path.read_bytes()
    num_bits = 8 * len(original)
    for index in range(NUM_FLIPS):
        flip(path, index * (num_bits - 1) // (NUM_FLIPS - 1))
        checks = [check for check in find_checks(data) if check.path == path]
        problems = [check.find_problem() for check in checks]
        assert [problem and problem.state for problem in problems] == ["damaged"]
        path.write_bytes(original)
    flip(path, 4 * len(original))
    status, result = showtell_json("verify", "--data", data)
    assert status == 1
    (problem,) = result["problems"]
    follow(problem["command"], showtell)
    assert showtell("verify", "--data", data)[0] == 0
    if path.name == "last.safetensors":
        assert not path.exists()  # a finished run does not need it
    elif path.name != "metrics.jsonl":  # a value that is lost stays lost
        assert without_times(path, path.read_bytes()) == without_times(path, original)


def without_times(path: Path, content: bytes) -> Any:
    """The content of a file without what differs between two runs of the same command."""
    if path.suffix == ".safetensors":  # the config in the header names the device
        return content[8 + int.from_bytes(content[:8], "little") :]
    if path.name not in ("manifest.json", "metrics.json"):
        return content
    timed = {"checksum", "checksums", "seconds", "details", "images_per_second"}
    values = json.loads(content)
    values["outputs"] = list(values.get("outputs", ()))  # sizes depend on the digits of times
    return {k: v for k, v in values.items() if k not in timed and not k.endswith("_seconds")}


def test_all_bad_files_are_listed_in_the_order_of_the_pipeline(data, showtell: Run) -> None:
    flip(data / "runs/r/config.json", 99)
    flip(data / "scenes/captions/vocab.json", 99)
    (data / "scenes/captions/images.parquet").unlink()
    status, output = showtell("verify", "--data", data)
    assert status == 1
    states = [line.partition(": ")[0] for line in output.splitlines()]
    assert states[:4] == ["missing", "damaged", "damaged", "verify"]
    assert f"3 of {len(list(find_checks(data)))} files" in output
    first, second = output.splitlines()[-2:]
    assert first.startswith("  showtell prepare") and second.startswith("  showtell train")


def test_remains_of_stopped_work_are_listed_but_are_no_damage(data, showtell_json) -> None:
    (data / "scenes/captions/.vocab.1.partial.json").touch()
    (data / "runs/r/manifest.json").unlink()
    (data / "scenes/features/resnet18-random-32/.next").mkdir()
    (data / "scenes/features/resnet18-random-32/.next/part-00000.h5").touch()
    status, result = showtell_json("verify", "--data", data)
    assert status == 0
    assert {problem["state"] for problem in result["problems"]} == {"unfinished"}
    assert [Path(problem["path"]).name for problem in result["problems"]] == [
        ".vocab.1.partial.json",
        "manifest.json",
        "manifest.json",
    ]


def test_deleted_manifest_is_listed_with_the_command(data, showtell: Run) -> None:
    (data / "scenes/captions/manifest.json").unlink()
    status, output = showtell("verify", "--data", data)
    assert status == 0
    assert output.startswith(f"unfinished: {data / 'scenes/captions'} is not complete: its stage")
    assert f"Run 'showtell prepare --dataset scenes --min-count 1 --data {data}'" in output
    assert output.splitlines()[-1].endswith("Left by stopped stages: 1.")


@pytest.mark.parametrize(
    "name",
    [name for name in KINDS if not any(part in name for part in ("/eval/", "images/", "last."))],
)
def test_folder_in_place_of_a_file_is_damage_that_the_command_repairs(
    data, showtell: Run, showtell_json: RunJson, name: str
) -> None:
    (data / name).unlink()
    (data / name).mkdir()
    status, result = showtell_json("verify", "--data", data)
    (problem,) = result["problems"]
    assert status == 1 and problem["path"] == str(data / name)
    assert problem["command"].startswith("rmdir ")
    before = set(data.rglob("manifest.json"))
    for stage in ("download", ("prepare", "--min-count", "1")):
        words = [stage] if isinstance(stage, str) else stage
        assert "Traceback" not in showtell(*words, "--dataset", "scenes", "--data", data)[1]
    assert set(data.rglob("manifest.json")) == before
    follow(problem["command"], showtell)
    assert showtell("verify", "--data", data)[0] == 0


def test_folder_that_is_being_written_is_skipped_and_counted(data, showtell: Run) -> None:
    (data / "scenes/captions/vocab.json").write_text("")
    with locked(data / "scenes/captions"):
        status, output = showtell("verify", "--data", data)
    assert status == 0
    assert output.startswith(f"skipped: {data / 'scenes/captions'} is being written by another")
    assert "Folders skipped: 1." in output.splitlines()[-1]
    assert showtell("verify", "--data", data)[0] == 1


def test_raw_folder_of_the_user_is_not_verified(data, showtell: Run) -> None:
    raw = data / "flickr8k/raw"
    raw.mkdir(parents=True)
    (raw / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog .\n")
    status, output = showtell("verify", "--data", data)
    assert status == 0 and "flickr8k" not in output
    (raw / ".lock").touch()  # of a download that was interrupted
    assert "unfinished: " in showtell("verify", "--data", data)[1]


@pytest.mark.parametrize("is_finished", [True, False])
def test_vocabulary_and_weights_must_be_those_of_the_run(data, showtell, is_finished) -> None:
    run = data / "runs/r"
    if is_finished:  # as earlier versions wrote it
        forget_checksums(run)
    else:
        (run / "manifest.json").unlink()
    vocab, best = run / "vocab.json", run / "best.safetensors"
    text = vocab.read_text()
    vocab.write_text(text.replace('"star"', '"stbr"'))
    assert vocab.read_text() != text
    write_tensors(best, {name: w[:0] for name, w in read_tensors(best)[0].items()})
    if is_finished:
        forget_checksums(run)
    problems = {c.path.name: c.find_problem() for c in find_checks(data) if c.path.parent == run}
    for name in (vocab.name, best.name):
        assert problems[name] is not None and problems[name].state == "damaged"


def test_damaged_files_of_earlier_versions_are_listed(data, showtell_json) -> None:
    features, evaluation = (
        data / "scenes/features/resnet18-random-32",
        data / "runs/r/eval/test-beam3",
    )
    for name in ("metrics.json", "captions.json"):
        content = (evaluation / name).read_bytes()
        (evaluation / name).write_bytes(content[:50] + b" " * (len(content) - 50))
    forget_checksums(evaluation)
    forget_checksums(features, "fingerprints", "fingerprxnts")
    status, result = showtell_json("verify", "--data", data)
    assert status == 1
    bad = {Path(problem["path"]).name for problem in result["problems"]}
    assert bad == {"metrics.json", "captions.json", "part-00000.h5", "part-00001.h5"}
    assert {problem["state"] for problem in result["problems"]} == {"damaged"}


def forget_checksums(folder: Path, old: str = "", new: str = "") -> None:
    """Rewrite a manifest as earlier versions did, with the present sizes."""
    values = json.loads((folder / "manifest.json").read_text().replace(old, new))
    for key in ("checksum", "checksums", "command", "folder"):
        values.pop(key, None)
    values["outputs"] = {name: (folder / name).stat().st_size for name in values["outputs"]}
    (folder / "manifest.json").write_text(json.dumps(values))


def test_file_that_cannot_be_read_is_a_problem_and_ends_nothing(tmp_path) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    problem = Check(tmp_path / "scenes/captions/manifest.json", fail).find_problem()
    assert problem is not None and problem.state == "damaged"
    assert "manifest.json cannot be read: Input/output error." in problem.message


def test_unreadable_manifests_do_not_end_the_list(data, showtell: Run, monkeypatch) -> None:
    manifests = [data / "scenes" / folder / "manifest.json" for folder in ("captions", "raw")]
    read_bytes = Path.read_bytes

    def read_or_fail(path: Path) -> bytes:
        if path in manifests:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    status, output = showtell("verify", "--data", data)
    assert status == 1
    assert all(f"{manifest} cannot be read: Input" in output for manifest in manifests)


def test_paths_select_what_is_verified(data, showtell: Run, tmp_path) -> None:
    (data / "scenes/captions/vocab.json").write_text("")
    assert showtell("verify", data / "runs/r", "--data", data)[0] == 0
    assert showtell("verify", data / "scenes/captions/images.parquet", "--data", data)[0] == 0
    assert showtell("verify", data / "runs/r", data / "scenes", "--data", data)[0] == 1
    for path in (tmp_path, data / "nosuch"):
        status, output = showtell("verify", path, "--data", data)
        assert status == 1 and f"{path} contains no file that" in output
    assert showtell("verify", "--data", data / "nosuch")[0] == 1


@pytest.mark.parametrize("name", ["scenes", "scenes/features", "runs/r", "runs/r/best.safetensors"])
def test_what_is_behind_a_link_is_verified(data, showtell: Run, tmp_path, name: str) -> None:
    elsewhere, link = tmp_path / "disk", data / name
    shutil.move(link, elsewhere)
    link.symlink_to(elsewhere)
    num_files = len(list(find_checks(data)))
    assert f"0 of {num_files} files" in showtell("verify", "--data", data)[1]
    path = max(data.glob("runs/r/best.safetensors" if "runs" in name else "scenes/features/*/*.h5"))
    flip(path, 99)
    for paths in ((), (link,), (elsewhere,), (path,)):
        status, output = showtell("verify", *paths, "--data", data)
        assert status == 1 and output.startswith(f"damaged: {path} is damaged")
    shutil.move(elsewhere, tmp_path / "unmounted")
    for paths in ((), (link,)):
        status, output = showtell("verify", *paths, "--data", data)
        assert status == 1 and output.startswith(f"missing: {link} ")


def test_archives_are_compared_with_their_published_md5(tmp_path, showtell: Run) -> None:
    raw = tmp_path / "coco2014/raw"
    raw.mkdir(parents=True)
    archive = raw / "a.zip"
    archive.write_bytes(b"archive")
    md5 = hashlib.md5(b"archive").hexdigest()
    Manifest(
        stage="download",
        version=1,
        config={},
        inputs={"zips/a.zip": f"md5:{md5}"},
        outputs={"a.zip": 7},
    ).write(raw)
    assert showtell("verify", "--data", tmp_path)[0] == 0
    archive.write_bytes(b"Archive")
    status, output = showtell("verify", "--data", tmp_path)
    assert status == 1
    assert f"Run 'rm -f {archive} && showtell download --dataset coco2014" in output


def follow(command: str, showtell: Run) -> None:
    """Run a command that showtell has given."""
    for words in map(shlex.split, command.split(" && ")):
        if words[0] in ("rm", "rmdir"):
            subprocess.run(words, check=True)
        else:
            status, output = showtell(*words[1:])
            assert status == 0, f"{command}: {output}"

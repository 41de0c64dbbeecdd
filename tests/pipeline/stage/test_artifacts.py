import errno
import json
import os
import shlex
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from showtell.pipeline.config import PrepareConfig
from showtell.pipeline.stage.artifacts import (
    read_output,
    reading,
    repair_command,
    require_bundle_folder,
    require_stage,
)
from showtell.pipeline.stage.checksums import checksums_of
from showtell.pipeline.stage.command_line import command_line, command_of
from showtell.pipeline.stage.errors import (
    ConfigError,
    DamagedFileError,
    MissingArtifactError,
    ShowTellError,
    StorageError,
)
from showtell.pipeline.stage.manifest import COPY_NAME, MANIFEST_NAME, Manifest


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Path:
    """The finished folder `data/mine/captions`, seen from the folder of `data`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHOWTELL_DATA", raising=False)
    directory = Path("data/mine/captions")
    directory.mkdir(parents=True)
    (directory / "out.bin").write_bytes(b"12345")
    Manifest(
        stage="prepare",
        version=1,
        config={},
        inputs={},
        outputs={"out.bin": 5},
        checksums=checksums_of(directory, ["out.bin"]),
        details={"source": "/my photos"},
        command="prepare --dataset mine --source '/my photos'",
    ).write(directory)
    return directory


REPAIR = "Run 'showtell prepare --dataset mine --source '/my photos''."


def test_undamaged_output_is_returned(stage) -> None:
    assert read_output(stage / "out.bin") == b"12345"
    assert require_stage(stage).outputs == {"out.bin": 5}


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"12344", "its content does not match its checksum"),
        (b"1234", "it has 4 bytes, expected 5"),
        (b"", "it has 0 bytes, expected 5"),
    ],
)
def test_damaged_output_is_refused_with_the_command_that_repairs_it(
    stage, content: bytes, problem: str
) -> None:
    (stage / "out.bin").write_bytes(content)
    expected = f"{stage / 'out.bin'} is damaged: {problem}. {REPAIR}"
    for read in (lambda: read_output(stage / "out.bin"), lambda: require_stage(stage)):
        with pytest.raises(DamagedFileError) as caught:
            read()
        assert str(caught.value) == expected


def test_missing_output_is_refused_with_the_command_that_repairs_it(stage) -> None:
    (stage / "out.bin").unlink()
    for read in (lambda: read_output(stage / "out.bin"), lambda: require_stage(stage)):
        with pytest.raises(MissingArtifactError) as caught:
            read()
        assert str(caught.value) == f"{stage / 'out.bin'} does not exist. {REPAIR}"


def test_output_listed_without_a_checksum_is_verified_by_its_size(stage) -> None:
    values = json.loads((stage / MANIFEST_NAME).read_text())
    for name in ("checksums", "checksum", "command", "folder"):
        del values[name]  # as earlier versions wrote it
    (stage / MANIFEST_NAME).write_text(json.dumps(values))
    (stage / COPY_NAME).unlink()
    (stage / "out.bin").write_bytes(b"abcde")
    assert read_output(stage / "out.bin") == b"abcde"
    (stage / "out.bin").write_bytes(b"abcd")
    with pytest.raises(DamagedFileError, match="4 bytes, expected 5"):
        read_output(stage / "out.bin")


def test_manifest_is_called_missing_only_if_it_is_missing(stage) -> None:
    manifest = stage / MANIFEST_NAME
    manifest.write_bytes(manifest.read_bytes().replace(b'"version": 1', b'"version": 3'))
    with pytest.raises(DamagedFileError) as caught:
        require_stage(stage)
    assert str(caught.value) == (
        f"{manifest} is damaged: its content does not match its checksum. {REPAIR}"
    )
    assert Manifest.read(stage) is None
    manifest.unlink()
    with pytest.raises(MissingArtifactError) as caught:
        require_stage(stage)
    assert str(caught.value) == f"{manifest} does not exist. {REPAIR}"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not a number"),
        KeyError("image_id"),
        TypeError("no"),
        IndexError("7"),
        AttributeError("x"),
        OverflowError("too large"),
        EOFError(),
        RecursionError("too deep"),
        NotImplementedError("codec"),
        zlib.error("Error -3"),
        OSError("Couldn't deserialize thrift"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_a_parser_becomes_one_line(stage, error: Exception) -> None:
    with pytest.raises(DamagedFileError) as caught, reading(stage / "out.bin"):
        raise error
    message = str(caught.value)
    assert message.startswith(f"{stage / 'out.bin'} is damaged: ")
    assert message.endswith(REPAIR) and "\n" not in message


def test_errors_of_the_system_are_not_called_damage(stage) -> None:
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out.bin")
    with (
        pytest.raises(StorageError, match=r"out.bin cannot be read: Permission denied\."),
        reading(stage / "out.bin"),
    ):
        raise denied


def test_own_errors_and_bugs_pass_through(stage) -> None:
    class LibraryError(Exception):
        pass

    for error in (ShowTellError("mine"), MemoryError(), LibraryError(), NameError()):
        with pytest.raises(type(error)), reading(stage / "out.bin"):
            raise error
    with pytest.raises(DamagedFileError), reading(stage / "out.bin", LibraryError):
        raise LibraryError("bad page")


@pytest.mark.parametrize(
    "path, command",
    [
        ("data/mine/raw/a.csv", "download --dataset mine"),
        ("data/mine/captions/vocab.json", "prepare --dataset mine"),
        ("data/my set/captions/vocab.json", "prepare --dataset 'my set'"),
        (
            "data/mine/features/resnet50-caffe/part-00000.h5",
            "features --dataset mine --encoder resnet50 --weights caffe",
        ),
        (
            "data/mine/features/vgg16-IMAGENET1K_V1-96/.next/part-00000.h5",
            "features --dataset mine --encoder vgg16 --weights IMAGENET1K_V1 --image-size 96",
        ),
        ("data/runs/gru/best.safetensors", "train --run gru --resume"),
        ("data/runs/images/config.json", "train --run images --resume"),
        ("data/runs/gru/eval/val-beam3/metrics.json", "eval --run gru"),
        ("data/ensembles/a+b/eval/val-beam3/metrics.json", "eval --run a --run b"),
    ],
)
def test_repair_command_follows_from_the_place_of_a_file(
    tmp_path, monkeypatch, path: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHOWTELL_DATA", raising=False)
    assert repair_command(Path(path)) == f"showtell {command}"
    elsewhere = Path("disk 2") / path
    assert repair_command(elsewhere) == f"showtell {command} --data '{tmp_path}/disk 2/data'"
    monkeypatch.setenv("SHOWTELL_DATA", "disk 2/data")
    assert repair_command(elsewhere) == f"showtell {command}"
    assert repair_command(Path(path)) == f"showtell {command} --data {tmp_path}/data"


def test_recorded_command_makes_the_same_config(tmp_path, monkeypatch) -> None:
    """Read back by Typer, with every kind of option."""
    from typer.testing import CliRunner

    from showtell import cli

    monkeypatch.chdir(tmp_path)
    config = PrepareConfig(dataset="it's mine", source=Path("a b"), min_count=2, seed=7)
    words = shlex.split(command_of("prepare", config))
    result = CliRunner().invoke(cli.app, [*words, "--print-config"])
    assert result.exit_code == 0, result.output
    given = [line for line in result.output.splitlines() if not line.startswith(("#", "["))]
    assert given == [
        'dataset = "it\'s mine"',
        f'source = "{tmp_path / "a b"}"',
        "seed = 7",
        "min-count = 2",
    ]


def test_suggested_command_survives_the_shell(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHOWTELL_DATA", raising=False)
    name = """it's a "run" $HOME; rm *"""
    command = command_line(Path("my data"), "train", "--run", name)
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["showtell", "train", "--run", name, "--data", "my data"]
    assert command_line(Path("data"), "train") == "showtell train"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeroed": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
} | {
    f"flipped {place}": lambda content, place=place: (
        content[: len(content) * place // 8]
        + bytes([content[len(content) * place // 8] ^ 4])
        + content[len(content) * place // 8 + 1 :]
    )
    for place in range(8)
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_manifest_gives_the_recorded_command(stage, damage: str) -> None:
    path = stage / MANIFEST_NAME
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DamagedFileError) as caught:
        require_stage(stage)
    assert str(caught.value).endswith(REPAIR)
    (stage / COPY_NAME).write_bytes(b"")
    with pytest.raises(DamagedFileError) as caught:
        require_stage(stage)
    assert str(caught.value).endswith(
        "Run 'showtell prepare --dataset mine' with the options used before, which are lost."
    )


def test_command_of_another_folder_is_not_used(stage) -> None:
    """It would compute the other features, and the problem would remain."""
    features = stage.parent / "features"
    for size in (32, 64):
        folder = features / f"resnet18-caffe-{size}"
        folder.mkdir(parents=True)
        command = f"features --dataset mine --encoder resnet18 --image-size {size} --grid"
        Manifest("features", 1, {}, {}, {"part-00000.h5": 1}, command=command).write(folder)
    shutil.copy(features / "resnet18-caffe-64" / MANIFEST_NAME, features / "resnet18-caffe-32")
    shard = features / "resnet18-caffe-32/part-00000.h5"
    assert repair_command(shard).endswith("--encoder resnet18 --image-size 32 --grid")
    (shard.parent / COPY_NAME).unlink()
    assert repair_command(shard).endswith("--encoder resnet18 --weights caffe --image-size 32")


def test_command_of_an_earlier_version_has_the_options_of_the_manifest(stage) -> None:
    """Earlier manifests record no command; without options, another folder would be written."""
    features = stage.parent / "features/resnet101-caffe"
    config = {
        "encoder": "resnet101",
        "weights": "caffe",
        "views": 4,
        "grid": True,
        "image_size": None,
    }
    outputs = {"part-00000.h5": 1}
    manifest = Manifest("features", 1, config, {}, outputs, details={"weights": "/my w.pth"})
    features.mkdir(parents=True)
    (features / "part-00000.h5").write_bytes(b"x")
    manifest.write(features)
    assert repair_command(features / "part-00000.h5") == (
        f"rm -f {features}/part-00000.h5 && showtell features --dataset mine --encoder resnet101 "
        "--weights '/my w.pth' --views 4 --grid"
    )
    evaluation = stage.parents[1] / "ensembles/a+b/eval/test-beam5"
    config = {"beam": 5, "split": "test", "run": "a+b", "sample": False, "precision": "fp32"}
    evaluation.mkdir(parents=True)
    Manifest("eval", 3, config, {}, {}).write(evaluation)
    assert repair_command(evaluation / "metrics.json") == (
        "showtell eval --beam 5 --split test --run a --run b --precision fp32"
    )


def test_weights_of_a_run_are_never_deleted(stage) -> None:
    run = stage.parents[1] / "runs/gru"
    run.mkdir(parents=True)
    (run / "best.safetensors").write_bytes(b"good weights")
    Manifest("train", 1, {}, {}, {"best.safetensors": 12}).write(run)  # without checksums
    assert repair_command(run / "best.safetensors") == "showtell train --run gru --resume"


def test_recorded_command_does_not_let_a_preset_replace_an_option() -> None:
    from showtell.model.config import EvalConfig

    config = EvalConfig(preset="consensus", beam=3, length_penalty=1.0, views=4, consensus=1000)
    assert command_of("eval", config) == "eval --length-penalty 1.0 --views 4 --consensus 1000"


def test_command_with_a_path_that_is_not_unicode_is_recorded(stage) -> None:
    config = PrepareConfig(dataset="mine", source=Path(os.fsdecode(b"/d\xe9")))
    details = {"source": "/"}
    command = command_of("prepare", config)
    manifest = Manifest("prepare", 1, {}, {}, {}, details=details, command=command)
    manifest.write(stage)
    assert Manifest.load(stage) == manifest
    assert "/d\udce9" in repair_command(stage / "out.bin")


def test_folder_with_hidden_files_only_counts_as_empty(tmp_path) -> None:
    Manifest("export", 1, {}, {}, {}, command="export other OUT").write_copy(tmp_path)
    require_bundle_folder(tmp_path, "export", "run")  # an export that failed at once leaves this
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="holds another bundle, made by 'showtell export other'"):
        require_bundle_folder(tmp_path, "export", "run")

import errno
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from showtell.model.runs.layout import LOG_NAME
from showtell.model.runs.run_log import RunLog
from showtell.pipeline.stage.checksums import unseal
from showtell.pipeline.stage.errors import StorageError


def records_of(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / LOG_NAME).read_text("utf-8").splitlines()
    return [unseal(json.loads(line)) for line in lines]


def events_of(run_dir: Path) -> Iterator[Event]:
    """Yield the events of TensorBoard files, whose records are (length, crc, event, crc)."""
    for path in sorted((run_dir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += 12 + size + 4
        assert at == len(content)


def scalars_of(run_dir: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events_of(run_dir)
        for value in event.summary.value
    ]


def test_log_has_one_json_object_per_line(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(50, loss=3.5, lr=1e-3)
        log.write(57, epoch=1, val_CIDEr=0.25)
    assert records_of(tmp_path) == [
        {"step": 50, "loss": 3.5, "lr": 1e-3},
        {"step": 57, "epoch": 1, "val_CIDEr": 0.25},
    ]
    assert (tmp_path / LOG_NAME).read_text("utf-8").endswith("}\n")


def test_records_can_be_read_during_training(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(1, loss=3.5)
        assert records_of(tmp_path) == [{"step": 1, "loss": 3.5}]


def test_resumed_log_drops_records_after_the_checkpoint(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        for step in (1, 2, 3, 4):
            log.write(step, loss=float(step))
    with RunLog(tmp_path, step=2) as log:
        assert [record["step"] for record in records_of(tmp_path)] == [1, 2]
        log.write(3, loss=33.0)
    assert records_of(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 33.0},
    ]


def test_log_from_step_0_drops_all_records(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(1, loss=1.0)
    with RunLog(tmp_path, step=0):
        pass
    assert (tmp_path / LOG_NAME).read_bytes() == b""


@pytest.mark.parametrize("unfinished", ['{"st', '{"step": 2, "loss": 0.', '{"step": 2}', "{"])
def test_incomplete_line_is_dropped(tmp_path, unfinished: str) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(1, loss=1.0)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write(unfinished)
    with RunLog(tmp_path, step=5) as log:
        log.write(6, loss=6.0)
    assert [record["step"] for record in records_of(tmp_path)] == [1, 6]


def test_tensorboard_holds_the_same_scalars(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(50, loss=3.5, lr=0.25)
        log.write(57, epoch=1, val_CIDEr=0.125)
    assert scalars_of(tmp_path) == [
        (50, "loss", 3.5),
        (50, "lr", 0.25),
        (57, "epoch", 1.0),
        (57, "val_CIDEr", 0.125),
    ]


def test_tensorboard_shows_options_and_captions(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write_options({"cell": "gru", "seed": 0, "scst": False, "init": None}, "val_CIDEr")
        log.write_captions(57, [("a|b.jpg", "a dog\nruns", "dogs | run")])
    assert (tmp_path / LOG_NAME).read_bytes() == b""
    values = {value.tag: value for event in events_of(tmp_path) for value in event.summary.value}
    start = values["_hparams_/session_start_info"].metadata.plugin_data.content
    assert all(name in start for name in (b"cell", b"seed", b"scst")) and b"init" not in start
    assert b"val_CIDEr" in values["_hparams_/experiment"].metadata.plugin_data.content
    shown = values["val_captions/text_summary"]
    assert shown.metadata.plugin_data.plugin_name == "text"
    assert shown.tensor.string_val[0].decode().splitlines() == [
        "| image | caption | a reference |",
        "|---|---|---|",
        "| a\\|b.jpg | a dog runs | dogs \\| run |",
    ]


def test_resumed_log_purges_later_steps_in_tensorboard(tmp_path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.write(3, loss=3.0)
    with RunLog(tmp_path, step=2) as log:
        log.write(3, loss=33.0)
    starts = [
        event.step for event in events_of(tmp_path) if event.session_log.status == 1
    ]  # SessionLog.START: earlier events from this step on are orphans
    assert starts[-1] == 3
    assert (3, "loss", 33.0) in scalars_of(tmp_path)


def test_log_is_closed_after_an_error(tmp_path) -> None:
    with pytest.raises(ZeroDivisionError), RunLog(tmp_path, step=0) as log:
        log.write(1, loss=1.0)
        raise ZeroDivisionError
    assert log.file.closed
    assert scalars_of(tmp_path) == [(1, "loss", 1.0)]


def checkpointed_log(run_dir: Path) -> tuple[int, str]:
    """Write six records, four of them before a checkpoint; return the checkpoint's record of it."""
    with RunLog(run_dir, step=0) as log:
        for step in range(1, 7):
            log.write(step, loss=step / 8)
            if step == 4:
                mark = log.sync()
    return mark


def test_log_continues_where_the_checkpoint_was_written(tmp_path, capsys) -> None:
    mark = checkpointed_log(tmp_path)
    with (tmp_path / LOG_NAME).open("ab") as file:
        file.write(bytes(4096))  # what a power cut leaves of unsynced pages
    with RunLog(tmp_path, 4, *mark) as log:
        log.write(5, loss=0.5)
    assert [record["step"] for record in records_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err == ""


DAMAGES = {
    "zeros": bytes(30),
    "half a line": b'{"step": 2, "lo',
    "no text": b"\xff\xfe\x00",
    "no record": b"[1, 2]",
    "no step": b'{"loss": 1.0}',
    "step is text": b'{"step": "x"}',
    "infinite step": b'{"step": Infinity}',
    "huge number": b'{"step": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("is_old", [False, True], ids=["now", "old"])
def test_damaged_lines_are_dropped_with_a_warning(tmp_path, capsys, damage, is_old) -> None:
    mark = checkpointed_log(tmp_path)
    path = tmp_path / LOG_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage + b"\n", *lines[2:]]))
    with RunLog(tmp_path, 4, *([] if is_old else mark)):
        pass
    assert [record["step"] for record in records_of(tmp_path)] == [1, 3, 4]
    assert "metrics.jsonl is damaged: 1 lines were dropped" in capsys.readouterr().err


def test_no_damaged_value_is_kept(tmp_path, capsys) -> None:
    mark = checkpointed_log(tmp_path)
    path = tmp_path / LOG_NAME
    sound = path.read_bytes()
    expected = sound.splitlines()[:4]
    for bit in range(0, 8 * mark[0], 37):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << bit % 8
        for log_mark in (mark, ()):  # of a checkpoint, or of a finished run
            path.write_bytes(content)
            with RunLog(tmp_path, 4, *log_mark):
                pass
            kept = path.read_bytes().splitlines()
            # A newline that becomes something else joins two lines.
            assert 2 <= len(kept) < 4 and set(kept) < set(expected)
            assert "metrics.jsonl is damaged" in capsys.readouterr().err


def test_lines_of_an_earlier_version_are_kept(tmp_path) -> None:
    line = b'{"step": 1, "loss": 0.0}\n'
    (tmp_path / LOG_NAME).write_bytes(line)
    with RunLog(tmp_path, 4) as log:
        log.write(5, loss=1.0)
    assert (tmp_path / LOG_NAME).read_bytes().startswith(line)
    assert len(records_of(tmp_path)) == 2


@pytest.mark.parametrize("method", ["write", "flush"])
def test_full_disk_is_one_line(tmp_path, monkeypatch, method: str) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(StorageError, match=r"metrics\.jsonl could not be written: No space"),
        RunLog(tmp_path, step=0) as log,
    ):
        monkeypatch.setattr(log.board._py_recordio_writer, method, fill)
        log.write(1, loss=1.0)
        log.sync()

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest
from PIL import Image

from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.stage.errors import ConfigError, DatasetError
from showtell.pipeline.stage.signals import Stopped
from showtell.serving import caption as caption_module
from showtell.serving import stream
from showtell.serving.caption import caption, caption_files
from showtell.serving.config import CaptionConfig
from showtell.serving.images import find_images


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


def test_missing_file_is_named_and_the_others_are_captioned(
    captioner, folder, tmp_path, capsys
) -> None:
    missing, there = tmp_path / "nosuch.jpg", next(find_images([folder]))
    assert caption_files(captioner, [missing, there], DecodingOptions()) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {missing} does not exist.\n"
    assert captured.out.startswith(f"{there}: ")


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


def test_caption_files_continues_after_an_unreadable_image(captioner, folder, capsys) -> None:
    (folder / "b.png").write_bytes(b"not an image")
    (folder / "d.PNG").write_bytes(b"")
    assert caption_files(captioner, [folder], DecodingOptions(beam=1), batch_size=2) == 2
    captured = capsys.readouterr()
    assert [line.split(": ")[0] for line in captured.out.splitlines()] == [
        str(folder / name) for name in ("a/c.png", "a.png")
    ]
    errors = captured.err.splitlines()
    assert [line.split(" is not")[0] for line in errors] == [
        f"error: {folder / name}" for name in ("b.png", "d.PNG")
    ]


def files_config(data: Path, *images: Path, **options: Any) -> CaptionConfig:
    return CaptionConfig(data=data, run="r", device="cpu", images=list(images), **options)


def test_table_holds_what_the_captioner_says(data, captioner, folder, tmp_path, capsys) -> None:
    path = tmp_path / "captions.jsonl"
    (folder / "b.png").write_bytes(b"not an image")
    config = files_config(data, folder, output=path, n_best=2, batch_size=2, precision="fp32")
    assert caption(config) == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    readable = [folder / name for name in ("a/c.png", "a.png", "d.PNG")]
    expected = captioner.caption(readable, details=True, n_best=2)
    assert [(row["file_name"], row["rank"], row["caption"]) for row in rows] == [
        (str(image.relative_to(tmp_path)), rank, found.text)
        for image, captions in zip(readable, expected, strict=True)
        for rank, found in enumerate(captions, start=1)
    ]
    best = expected[0][0]
    assert rows[0]["log_prob"] == pytest.approx(best.log_prob, abs=1e-3)
    assert rows[0]["word_probs"] == pytest.approx(best.word_probs, abs=1e-3)
    assert rows[0]["model"].startswith("r@") and rows[0]["decoding"] == "beam3-nbest2"
    captured = capsys.readouterr()
    assert re.search(r"captioned now +3 *\n.* before +0 *\n *unreadable +1 *\n", captured.out)
    assert f"error: {folder / 'b.png'} is not a readable image: not an image" in captured.err
    assert "\nerror:" not in captured.err.rstrip()


def test_stopped_run_continues_and_gives_the_same_table(
    data, folder, tmp_path, monkeypatch
) -> None:
    whole, stopped = tmp_path / "whole.csv", tmp_path / "stopped.csv"
    options = {"sidecar": ".txt", "batch_size": 1}
    caption(files_config(data, folder, output=whole, **options))

    def stop_after_two(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from islice(stream.caption_stream(*args, **kwargs), 2)
        raise Stopped(SIGINT)

    monkeypatch.setattr(caption_module, "caption_stream", stop_after_two)
    config = files_config(data, folder, output=stopped, **options)
    with pytest.raises(Stopped, match="Run the same command again"):
        caption(config)
    assert stopped.read_text().count("\n") == 3
    monkeypatch.setattr(caption_module, "caption_stream", stream.caption_stream)
    assert caption(config) == 0
    assert stopped.read_text() == whole.read_text()
    monkeypatch.setattr(caption_module, "load", None)  # a finished table needs no model
    assert caption(config) == 0


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, "With --output FILE"),
        ({"sidecar": ".txt"}, "Run the same command again"),
        ({"sidecar": ".txt", "if_exists": "append"}, "captions all images again"),
    ],
)
def test_stopped_run_says_how_to_go_on(data, folder, monkeypatch, options, advice: str) -> None:
    def stop(*_: Any, **__: Any) -> Iterator[Any]:
        raise Stopped(SIGINT)
        yield

    monkeypatch.setattr(caption_module, "caption_stream", stop)
    with pytest.raises(Stopped, match=advice):
        caption(files_config(data, folder, **options))


def test_subfolders_are_left_out_on_request(data, folder, tmp_path, showtell_json) -> None:
    paths = []
    for options in ((), ("--no-recursive",), ("--recursive",)):
        given = ("--data", data, "--run", "r", "--device", "cpu", *options)
        status, results = showtell_json("caption", folder, *given)
        assert status == 0
        paths.append([Path(result["path"]).name for result in results])
        words = [len(result["captions"][0]["word_probs"]) for result in results]
        assert words == [len(result["captions"][0]["caption"].split(" ")) for result in results]
    assert paths[0] == paths[2] == ["c.png", "a.png", "b.png", "d.PNG"]
    assert paths[1] == ["a.png", "b.png", "d.PNG"]


def test_folder_with_images_in_subfolders_only_is_named(data, folder) -> None:
    for name in ("a.png", "b.png", "d.PNG"):
        (folder / name).unlink()
    with pytest.raises(DatasetError, match="mine contains no images outside its subfolders"):
        caption(files_config(data, folder, recursive=False))


def test_json_of_files_is_a_summary(data, folder, tmp_path, showtell_json) -> None:
    (folder / "b.png").write_bytes(b"")
    options = ("--data", data, "--run", "r", "--device", "cpu", "--sidecar", ".txt")
    status, summary = showtell_json("caption", folder, *options)
    assert status == 1 and summary["num_captioned"] == 3
    assert [Path(image["path"]).name for image in summary["unreadable"]] == ["b.png"]
    assert (folder / "a/c.txt").read_text().endswith("\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output": "captions.txt"}, r"--output must end in .*, got 'captions\.txt'"),
        ({"output": "-"}, r"stdout: use --json"),
        ({"sidecar": "txt"}, "--sidecar must be a suffix, such as .txt, got 'txt'"),
        ({"sidecar": "."}, "--sidecar must be a suffix"),
        ({"sidecar": ".PNG"}, "--sidecar must be the suffix of text files"),
        ({"sidecar": ".csv"}, "--sidecar must be the suffix of text files"),
        ({"if_exists": "append"}, r"--if-exists only applies with --sidecar"),
        ({"sidecar": ".txt", "if_exists": "replace"}, "--if-exists must be one of skip, over"),
    ],
)
def test_options_of_files_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CaptionConfig(images=[Path("a.jpg")], **options)

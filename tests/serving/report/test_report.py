import json
import shutil
from pathlib import Path

import pytest

from showtell.serving.config import MAX_AGAINST

pytestmark = pytest.mark.usefixtures("without_plots")


def test_report_is_written_to_the_folder_of_the_run(showtell, data) -> None:
    status, output = showtell("report", "soft", "--data", data)
    assert status == 0, output
    html = (data / "runs/soft/report.html").read_text("utf-8")
    assert "plain/test-beam3" in html and "plain+soft/test-beam3-views2" in html  # compared with
    assert "10 images" in output and "warning" not in output


def test_newest_evaluation_is_taken_unless_another_is_named(
    showtell, data, scorers, tmp_path
) -> None:
    showtell("eval", "--data", data, "--run", "soft", "--beam", 1)
    status, output = showtell("report", "soft", "--data", data)
    assert status == 0 and "Using the newest evaluation, soft/test-beam1" in output
    assert "<title>soft/test-beam1" in (data / "runs/soft/report.html").read_text("utf-8")
    file = tmp_path / "new" / "other.html"
    status, output = showtell("report", "soft/test-beam3-nbest3", "--data", data, "--output", file)
    assert status == 0 and "<title>soft/test-beam3-nbest3" in file.read_text("utf-8")


@pytest.mark.parametrize("name", ["plain+soft", "runs/plain", "runs/plain/eval/test-beam3"])
def test_ensembles_and_folders_name_an_evaluation_too(showtell, data, name, tmp_path) -> None:
    path = data / name if "/" in name else name
    status, output = showtell("report", path, "--data", data, "--output", tmp_path / "r.html")
    assert status == 0, output


def test_evaluation_may_be_named_from_the_folder_of_its_run(showtell, data, monkeypatch) -> None:
    monkeypatch.chdir(data / "runs/plain")
    status, output = showtell("report", "eval/test-beam3", "--image-size", 0)
    assert status == 0, output
    assert (data / "runs/plain/report.html").exists()


def test_markdown_is_written_with_its_plots(showtell_json, data, tmp_path) -> None:
    status, found = showtell_json(
        "report", "plain", "--data", data, "--output", tmp_path / "readme.md", "--against", "soft"
    )
    assert status == 0 and found == {"path": str(tmp_path / "readme.md")}
    assert "soft/test" in (tmp_path / "readme.md").read_text("utf-8").replace("\\", "")
    assert (tmp_path / "readme-scores.png").exists()


def test_eval_writes_the_report_too(run_showtell, data, scorers) -> None:
    status, output, _ = run_showtell(
        "eval", "--data", data, "--run", "plain", "--run", "soft", "--report", "--json"
    )
    assert status == 0 and json.loads(output)["run"] == "plain+soft"
    assert (data / "ensembles/plain+soft/report.html").exists()


def test_run_without_evaluation_names_the_command(showtell, data) -> None:
    shutil.rmtree(data / "runs/plain/eval")
    status, output = showtell("report", "plain", "--data", data)
    assert status == 1 and f"run 'showtell eval --run plain --data {data}' first" in output
    status, output = showtell("report", "nobody", "--data", data)
    assert status == 1 and "no run 'nobody'" in output and "plain, soft" in output


def test_images_that_are_gone_cost_only_their_pictures(showtell, data) -> None:
    manifest = json.loads((data / "scenes/captions/manifest.json").read_text())
    source = Path(manifest["details"]["source"])
    moved = source.rename(source.with_name("elsewhere"))
    try:
        status, output = showtell("report", "soft", "--data", data)
    finally:
        moved.rename(source)
    assert status == 0 and output.count("warning:") == 1
    assert "10 of 10 images are not shown" in output


def test_missing_features_cost_only_the_probabilities(showtell, data) -> None:
    shutil.rmtree(data / "scenes/features")
    status, output = showtell("report", "soft", "--data", data, "--image-size", 0)
    assert status == 0 and output.count("warning:") == 1
    assert "shows no probabilities of words" in output


@pytest.mark.parametrize("name", ["scores.npz", "captions.json", "metrics.json", "nbest.json"])
def test_damaged_results_are_named_with_their_repair_command(showtell, data, name) -> None:
    path = data / "runs/soft/eval/test-beam3-nbest3" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, output = showtell("report", "soft", "--data", data)
    assert status == 1 and f"{path} is damaged" in output and "showtell eval" in output
    assert not (data / "runs/soft/report.html").exists()


def test_damaged_evaluations_of_others_are_left_out(showtell, data) -> None:
    (data / "runs/plain/eval/test-beam3/scores.npz").write_bytes(b"")
    status, output = showtell("report", "soft", "--data", data)
    assert status == 0, output
    assert "plain/test-beam3" not in (data / "runs/soft/report.html").read_text("utf-8")
    status, output = showtell("report", "soft", "--data", data, "--against", "plain")
    assert status == 1 and "scores.npz" in output


def test_another_split_cannot_be_compared(showtell, data, scorers) -> None:
    showtell("eval", "--data", data, "--run", "plain", "--split", "val")
    status, output = showtell("report", "soft", "--data", data, "--against", "plain/val-beam3")
    assert status == 1 and "evaluates val of scenes" in output


def test_report_that_cannot_be_written_says_so(showtell, data) -> None:
    file = data / "file"
    file.touch()
    status, output = showtell("report", "soft", "--data", data, "--output", file / "r.html")
    assert status == 1 and "error:" in output and "Traceback" not in output
    status, output = showtell("report", "soft", "--data", data, "--output", data)
    assert status == 1 and f"--output must name a file, but {data} is a folder" in output
    many = [word for _ in range(MAX_AGAINST + 1) for word in ("--against", "plain")]
    status, output = showtell("report", "soft", "--data", data, *many)
    assert status == 1 and "--against can be given 4 times, got 5" in output


def test_a_large_split_is_shown_in_part(showtell, data) -> None:
    status, output = showtell("report", "soft", "--data", data, "--max-images", 3)
    assert status == 0 and "shows 3 of 10 images" in output
    assert "3 of 10 images, evenly spread" in (data / "runs/soft/report.html").read_text("utf-8")

import json

import pytest

from showtell.bench.gpu_report import compare, main, worker_rows

EPOCH = {"seconds": 12.8, "seconds_of_epoch": 5.2, "seconds_of_validation": 0.6, "batch_size": 1024}
WORKERS = {
    "network_alone": 12_100.0,
    "threads_1": 1450.0, "processes_1": 1400.0, "features_1": 1390.0,
    "threads_16": 1530.0, "processes_16": 14_000.0, "features_16": 11_500.0,
}  # fmt: skip


def test_table_shows_goal_command_and_machine(tmp_path, capsys) -> None:
    summary = {
        "coco-scale epoch": {"dataset": "coco-scale", "details": EPOCH},
        "features-tar": {"throughput": 9_000.0, "limit": 10_000.0},
        "workers": {"dataset": "scenes", "details": WORKERS},
        "machine": {"gpu": "NVIDIA H200", "cores": 16, "torch": "2.11.0"},
    }
    run = tmp_path / "bench/coco-scale/runs/epoch"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"precision": "bf16"}}))
    (tmp_path / "bench/summary.json").write_text(json.dumps(summary))
    steps = tmp_path / "steps.tsv"
    steps.write_text("gpu_tests\tpassed\t41\t70\nscst\ttimed out\t70\t70\n")
    main(tmp_path, steps)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        "| epoch of COCO's size, batches of 1,024, bf16 | 4.6 s | below 4 s: missed by 15% | "
        "showtell bench epoch --coco-scale | NVIDIA H200, 16 cores, torch 2.11.0 |"
    )
    assert any("images in tars | 9,000 images/s, from a folder 10,000 |" in line for line in lines)
    assert "| scst | timed out | 70 | 70 |" in lines


def test_processes_of_all_cores_are_compared_with_the_network() -> None:
    rows = list(worker_rows({"workers": {"dataset": "scenes", "details": WORKERS}}, "224×224"))
    goals = {row.what: row.goal for row in rows if row.goal}
    assert goals == {"images of 224×224 with 16 workers: processes alone": "at least 12,100: met"}
    assert list(worker_rows({}, "224×224")) == []


def test_missing_figures_leave_an_empty_table(tmp_path, capsys) -> None:
    (tmp_path / "steps.tsv").write_text("")
    main(tmp_path, tmp_path / "steps.tsv")
    assert capsys.readouterr().out.count("\n") == 5


@pytest.mark.parametrize(
    "measured, is_met, text",
    [(3.0, True, "below 4 s: met"), (5.0, False, "below 4 s: missed by 25%")],
)
def test_goal_says_whether_it_is_met(measured, is_met, text) -> None:
    assert compare(measured, 4.0, is_met, "below {:g} s") == text

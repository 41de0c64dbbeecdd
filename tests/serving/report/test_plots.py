import re
import xml.etree.ElementTree as ET
from collections import Counter

from showtell.serving.report.plots import (
    find_curves,
    plot_cider,
    plot_confidence,
    plot_lengths,
    plot_scores,
    plot_training,
)

HOSTILE = "<b>&\"'$x$ _a"


def draw_all():
    logs = {
        "a": {"loss": ([1, 2], [3.0, 2.0]), "val_CIDEr": ([2], [0.5])},
        HOSTILE: {"loss": ([1, 2], [3.0, 1.0])},
    }
    scores = {"Bleu_4": (0.2, 0.1, 0.3), "CIDEr": (0.5, 0.4, 0.6)}
    return [
        plot_scores(["Bleu_4", "CIDEr"], [("a", scores), (HOSTILE, {"CIDEr": (0.1, 0.1, 0.1)})]),
        *plot_training(logs, "CIDEr"),
        plot_lengths(Counter({3: 2}), Counter({5: 1, 80: 1})),
        plot_cider([0.0, 0.5, 10.0]),
        plot_confidence([-2.0, -1.0], [0.1, 0.2]),
    ]


def test_svg_follows_the_theme_and_loads_nothing() -> None:
    for plot in draw_all():
        svg = plot.to_svg()
        assert not re.search(r"#[0-9a-f]{6}\b", svg), plot.name
        assert "var(--ink)" in svg or "var(--soft)" in svg
        assert not re.search(r"(href|src)=\"(?!#)", svg)
        assert svg == plot.to_svg()  # the same input gives the same file


def test_names_of_runs_stay_text_in_a_plot() -> None:
    for plot in draw_all()[:2]:
        root = ET.fromstring(plot.to_svg())
        texts = [text for element in root.iter() if (text := element.text)]
        assert HOSTILE in texts
        assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"b"})


def test_png_is_a_png() -> None:
    assert draw_all()[0].to_png().startswith(b"\x89PNG")


def test_a_log_that_is_missing_or_damaged_costs_only_the_curves(tmp_path) -> None:
    assert find_curves(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "epoch": 1, "val_CIDEr": 2.5}\n')
    assert find_curves(tmp_path)["val_CIDEr"] == ([1.0], [2.5])
    for content in (b"", b"\0\0\n", b"[1]\n", b'{"step": 3, "loss": 2}\n{"st'):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        assert find_curves(tmp_path) == {}

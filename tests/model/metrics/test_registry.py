from pathlib import Path

import numpy as np
import pytest

from showtell.model.metrics import registry
from showtell.model.metrics.clip_score import ClipScore, RefClipScore
from showtell.model.metrics.metric import CaptionSet, Floats, Metric
from showtell.model.metrics.registry import choose_metrics, score_metrics
from showtell.model.metrics.spice import Spice
from showtell.pipeline.stage.errors import ConfigError, ScorerError

CAPTIONS = CaptionSet(
    hypotheses={7: "A dog.", 3: "A cat!"},
    tokenized_hypotheses={7: "a dog", 3: "a cat"},
    tokenized_references={7: ["a dog runs"], 3: ["a cat", "the cat"]},
    captions_dir=Path("captions"),
)


CLIP = ClipScore(Path())


class NumReferences(Metric):
    name = "NumReferences"

    def score(self, captions: CaptionSet) -> Floats:
        return np.array([float(len(texts)) for texts in captions.tokenized_references.values()])


class Failing(Metric):
    name = "Failing"

    def score(self, captions: CaptionSet) -> Floats:
        raise ScorerError("no memory")


def test_metrics_are_computed_when_asked_for() -> None:
    assert choose_metrics() == []
    spice, clip, ref_clip = choose_metrics(spice=True, clip=Path("clip"))
    assert isinstance(spice, Spice) and isinstance(clip, ClipScore)
    assert clip.folder == Path("clip")
    assert isinstance(ref_clip, RefClipScore) and ref_clip.clip_score is clip
    with pytest.raises(ConfigError, match=r"those of --tokenizer unicode\. Leave out --spice\."):
        choose_metrics("unicode", spice=True)


def test_default_metrics_are_always_computed(monkeypatch) -> None:
    monkeypatch.setattr(registry, "DEFAULT_METRICS", (NumReferences(),))
    [metric] = choose_metrics()
    assert metric.inputs() == {"NumReferences": "1"}
    assert score_metrics([metric], CAPTIONS)["NumReferences"].tolist() == [1, 2]


def test_failing_metric_is_left_out_with_a_warning(capsys) -> None:
    scores = score_metrics([Failing(), NumReferences()], CAPTIONS)
    assert list(scores) == ["NumReferences"]
    assert capsys.readouterr().err == "warning: Failing is left out: no memory\n"


@pytest.mark.parametrize("metric", [Spice(), CLIP, RefClipScore(CLIP), NumReferences()])
def test_names_begin_with_a_capital(metric: Metric) -> None:
    """`eval` prints the numbers whose names do."""
    assert metric.name[0].isupper()

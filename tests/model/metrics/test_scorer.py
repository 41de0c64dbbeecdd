from collections import Counter
from itertools import chain

import pytest

from showtell.model.metrics.caption_scorer import CaptionScorer
from showtell.model.metrics.scorer import score_captions

REFERENCES = {
    2: ["雪地里有一个红色的圆。", "一个红色的圆在雪地里。"],
    1: ["海边有两个蓝色的T。", "两个蓝色的T在海边。"],
}
HYPOTHESES = {1: "海边有一个蓝色的T", 2: "一个红色的圆在雪地里"}


def test_captions_in_chinese_are_scored_by_character_without_meteor() -> None:
    scored = score_captions(REFERENCES, HYPOTHESES, "characters")
    assert scored.hypotheses == {2: "一 个 红 色 的 圆 在 雪 地 里", 1: "海 边 有 一 个 蓝 色 的 t"}
    assert scored.references[1] == ["海 边 有 两 个 蓝 色 的 t", "两 个 蓝 色 的 t 在 海 边"]
    scores = scored.images.of_all()
    assert scores == pytest.approx(CaptionScorer(scored.references).score(scored.hypotheses))
    assert "METEOR" not in scores and scored.images.meteor is None
    # BLEU-1 by hand: characters found in the references, of the best reference each.
    found = total = 0
    for image_id, text in scored.hypotheses.items():
        counts = [Counter(reference.split()) for reference in scored.references[image_id]]
        for character, count in Counter(text.split()).items():
            found += min(count, max(each[character] for each in counts))
            total += count
    assert scores["Bleu_1"] == pytest.approx(found / total, abs=1e-9)
    assert total == len([*chain(*scored.hypotheses.values())]) // 2 + 1

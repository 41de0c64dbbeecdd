from collections import Counter

import pytest

from showtell.pipeline.text.ptb import tokenize
from showtell.pipeline.text.scripts import unspaced_words_warnings

UNSPACED = {
    "Chinese": [
        "一只狗在草地上奔跑。",
        "两个男人在海滩上打排球，天空很蓝。",
        "一个女孩，骑着自行车。",
    ],
    "Japanese": ["犬が芝生の上を走っている。", "男性がスケートボードに乗っています。"],
    "Thai": ["สุนัขวิ่งบนสนามหญ้า", "ผู้ชายกำลังเล่นสเก็ตบอร์ดบนถนน"],
    "Lao": ["ຫມາແລ່ນຢູ່ເທິງຫຍ້າ"],
}
SPACED = {
    "Chinese": ["一只 狗 在 草地 上 奔跑 。", "两 个 男人 在 海滩 上 打 排球 ， 天空 很 蓝 。"],
    "Chinese letters": ["一 只 狗 在 草 地 上 奔 跑"],
    "Japanese": [
        "犬 が 芝生 の 上 を 走って いる 。",
        "男性 が ボード に 乗って い ます 。",
    ],
    "Thai": ["สุนัข วิ่ง บน สนามหญ้า", "ผู้ชาย กำลัง เล่น สเก็ตบอร์ด บน ถนน"],
    "Korean": ["개가 잔디밭에서 달린다.", "남자가 스케이트보드를 타고 있습니다."],
    "German": ["Ein Hund läuft über die Grünfläche.", "Donaudampfschifffahrtsgesellschaft"],
    "English": ["A dog runs on the grass."] * 20 + ["A sign that says 一只狗在草地上奔跑."],
}


def warnings_of(captions: list[str]) -> tuple[str, ...]:
    words = Counter(word for caption in captions for word in tokenize(caption))
    return unspaced_words_warnings(words, len(captions))


@pytest.mark.parametrize("language", UNSPACED)
def test_captions_without_spaces_give_a_warning(language: str) -> None:
    (message,) = warnings_of(UNSPACED[language])
    assert "no spaces between words" in message and "jieba" in message
    assert warnings_of(UNSPACED[language] + SPACED["German"])


@pytest.mark.parametrize("language", SPACED)
def test_captions_with_spaces_give_none(language: str) -> None:
    assert warnings_of(SPACED[language]) == ()

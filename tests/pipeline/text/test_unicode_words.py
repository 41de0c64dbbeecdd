import random
import re
import unicodedata

import pyarrow as pa
import pytest
import regex

from showtell.pipeline.text.columns import tokenize_all
from showtell.pipeline.text.scripts import UNSPACED, join_words
from showtell.pipeline.text.unicode_words import split_characters, split_words

# Worked out by hand from the rules of UAX #29: words, then characters where they differ.
EXAMPLES = {
    "Ein Hund läuft über die Grünfläche.": "ein hund läuft über die grünfläche",
    "Un enfant joue; l’eau est à 3,5 °C !": "un enfant joue l'eau est à 3,5 c",
    "Собака бежит.": "собака бежит",
    "개가 잔디밭에서 달린다.": "개가 잔디밭에서 달린다",
    "كلب يركض على العشب.": "كلب يركض على العشب",
    "कुत्ता घास पर दौड़ रहा है।": "कुत्ता घास पर दौड़ रहा है",
    "cafe\u0301 na\u00adïve 😀 <3": "café naïve 3",
    "一个穿红色T恤的男人，拿着iPhone 15。": "一 个 穿 红 色 t 恤 的 男 人 拿 着 iphone 15",
    "ＡＢＣ　１２３個": "abc 123 個",
}
DIFFERENT = {
    "少年がスケボーをする。": (
        "少 年 が スケボー を す る",
        "少 年 が ス ケ ボ ー を す る",
    ),
    "ｶﾞﾗｽ": ("ガラス", "ガ ラ ス"),
    "น้ำตก 3 แห่ง": ("น้ ำ ต ก 3 แ ห่ ง", "น้ำ ต ก 3 แ ห่ ง"),
}


@pytest.mark.parametrize("caption", [*EXAMPLES, *DIFFERENT])
def test_captions_are_split_by_the_rules(caption: str) -> None:
    expected = EXAMPLES.get(caption)
    words, characters = DIFFERENT.get(caption, (expected, expected))
    words, characters = (unicodedata.normalize("NFC", text) for text in (words, characters))
    assert (split_words(caption), split_characters(caption)) == (
        words.split(" "),
        characters.split(" "),
    )


def random_captions(count: int) -> list[str]:
    draw = random.Random(0)
    letters = "aZ9.'’_- ,\u3000\u00ad\u0301一狗々ーカｶﾞが。、กน้ำเ๑ລາကို한Ωд١\u200bＡ１é😀"
    return ["".join(draw.choices(letters, k=draw.randint(0, 15))) for _ in range(count)]


@pytest.mark.parametrize("split", [split_words, split_characters])
def test_splitting_a_split_caption_changes_nothing(split) -> None:
    for caption in random_captions(3000):
        words = split(caption)
        assert split(" ".join(words)) == words
        assert not any(re.search(r"\s", word) or word != word.lower() for word in words)


def test_columns_match_captions_split_one_by_one() -> None:
    captions = random_captions(3000)
    for name, split in (("unicode", split_words), ("characters", split_characters)):
        texts = tokenize_all(pa.array(captions), name).texts().to_pylist()
        assert texts == [" ".join(split(caption)) for caption in captions]


def test_words_are_joined_as_people_write_them() -> None:
    assert join_words("一 个 穿 t 恤 的 man in red 看 <unk>") == "一个穿t恤的man in red看<unk>"
    assert join_words("น้ำ ต ก สู ง 3 แ ห่ ง") == "น้ำตกสูง3แห่ง"
    assert join_words("少 年 が スケボー") == "少年がスケボー"
    assert join_words("개가 잔디밭에서 ein hund läuft") == "개가 잔디밭에서 ein hund läuft"
    for caption in EXAMPLES:
        words = split_characters(caption)
        assert split_characters(join_words(" ".join(words))) == words


def test_unspaced_letters_are_those_of_unicode() -> None:
    ours = re.compile(f"[{UNSPACED}]")
    unicodes = regex.compile(r"[\p{lb=SA}\p{Ideographic}\p{Hiragana}\p{Katakana}]")
    differ = {
        letter
        for letter in map(chr, range(0x40000))
        if unicodedata.category(letter)[0] in "LM"
        and bool(ours.match(letter)) != bool(unicodes.match(letter))
    }
    # Signs that repeat or follow such a letter, and half-width letters, which become others first.
    differ -= {*"々〱〲〳〴〵ー\u3099\u309a", *map(chr, range(0xFE00, 0xFE10))}
    assert differ - {*map(chr, range(0xFF66, 0xFF9E))} == {"\U00016fe4"}

import json

import pytest

from showtell.pipeline.stage.checksums import (
    checksum,
    checksum_of_file,
    checksums_of,
    seal,
    unseal,
)

SEALED = seal({"epoch": 3, "score": 0.25, "names": ("a", "ä"), "options": {"beam": 5, "run": None}})


def test_checksum_is_xxh3_of_the_content() -> None:
    # Published for the empty input, seed 0: github.com/Cyan4973/xxHash.
    assert checksum() == checksum(b"") == "xxh3:2d06800538d394c2"


def test_checksum_of_parts_is_that_of_their_concatenation() -> None:
    assert checksum(b"ab", memoryview(b"c")) == checksum(b"abc") != checksum(b"abd")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_checksum_of_a_file_is_that_of_its_content(tmp_path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert checksum_of_file(tmp_path / "file") == checksum(content)
    assert checksums_of(tmp_path, ["file"]) == {"file": checksum(content)}


def test_sealed_object_survives_a_file_and_another_order_of_keys() -> None:
    read = json.loads(json.dumps(SEALED, indent=3))
    shuffled = dict(sorted(read.items(), reverse=True))
    expected = {"epoch": 3, "score": 0.25, "names": ["a", "ä"], "options": {"beam": 5, "run": None}}
    assert unseal(read) == unseal(shuffled) == expected


@pytest.mark.parametrize(
    "change",
    [{"epoch": 4}, {"epoch": 3.5}, {"score": 0.5}, {"options": {"beam": 5}}, {"more": 1}],
    ids=str,
)
def test_unseal_notices_every_change(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="does not match its checksum"):
        unseal(SEALED | change)


def test_unseal_accepts_an_object_of_an_earlier_version() -> None:
    assert unseal({"epoch": 3}) == {"epoch": 3}


def test_every_flipped_bit_of_a_sealed_file_is_noticed_or_changes_nothing() -> None:
    content = bytearray(json.dumps(SEALED, ensure_ascii=False).encode())
    original, num_noticed = unseal(json.loads(content)), 0
    for position in range(8 * len(content)):
        content[position // 8] ^= 1 << position % 8
        try:
            assert unseal(json.loads(bytes(content))) == original
        except ValueError:
            num_noticed += 1
        except AssertionError:  # only the name of the key "checksum" can be lost unnoticed …
            assert set(json.loads(bytes(content))) - set(original) != {"checksum"}, position
        content[position // 8] ^= 1 << position % 8
    assert num_noticed > 0.9 * 8 * len(content)

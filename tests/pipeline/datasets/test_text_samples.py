"""Text tables that are read as a stream: quotes that are not closed, and those that are."""

import csv
from pathlib import Path

import pytest

from showtell.pipeline.datasets.samples import BAD_ROW, OPEN_QUOTE, LeftOut
from showtell.pipeline.datasets.text_samples import read_csv_samples


def read(path: Path) -> tuple[dict[str, str], LeftOut]:
    """URL → caption, and what is left out."""
    left_out = LeftOut()
    samples = list(read_csv_samples(str(path), path.name, left_out))
    return {sample.name: sample.captions[0] for sample in samples}, left_out


@pytest.mark.parametrize("end", ['A cat" here.', 'A cat "', "A cat."])
@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_lines_joined_by_an_open_quote_are_counted(tmp_path, suffix: str, end: str) -> None:
    captions = [f"Dog {i}." for i in range(30)]
    captions[7], captions[15] = '"Dog 7.', end
    separator = {"tsv": "\t", "csv": ","}[suffix]
    rows = [("caption", "url"), *((text, f"https://h/{i}.jpg") for i, text in enumerate(captions))]
    path = tmp_path / f"a.{suffix}"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    found, left_out = read(path)
    last = 29 if end == "A cat." else 15  # without another quote, it joins all lines
    lost = range(7, last + 1)
    assert found == {url: text for i, (text, url) in enumerate(rows[1:]) if i not in lost}
    assert left_out.counts == {OPEN_QUOTE: len(lost)}
    assert left_out.examples == [(f"a.{suffix}, line 9", OPEN_QUOTE)]


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_quotes_that_are_closed_are_read_as_written(tmp_path, suffix: str) -> None:
    separator = {"tsv": "\t", "csv": ","}[suffix]
    expected = {
        "https://h/0.jpg": 'A "big" dog.',
        "https://h/1.jpg": f"A dog{separator} a cat.",
        "https://h/2.jpg": 'Two lines,\nand a "quote".',
    }
    path = tmp_path / f"a.{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(("url", "caption"))
        writer.writerows(expected.items())
        file.write("https://h/3.jpg\n")
    found, left_out = read(path)
    assert found == expected
    assert left_out.examples == [(f"a.{suffix}, line 6", BAD_ROW)]

"""The memory of `prepare` does not grow with the number of rows, except by a few bytes for each."""

from showtell.bench.scale_prepare import measure_prepare, write_tables


def test_memory_is_flat(tmp_path, monkeypatch) -> None:
    from pathlib import Path

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    peaks = []
    for num_rows in (80_000, 320_000):
        folder = tmp_path / str(num_rows)
        write_tables(folder / "table", num_rows)
        _, peak, num_images = measure_prepare(f"{folder}/table/*.parquet", folder / "data")
        assert num_images == num_rows
        peaks.append(peak)
    # As Python strings, the names and captions alone would take 300 bytes a row.
    assert peaks[1] - peaks[0] < 240_000 * 200, peaks

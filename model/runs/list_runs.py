"""The command `showtell runs`: all runs and ensembles with their options and scores.

There is a row for each evaluation, and one for each run that has none. It loads no torch.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...pipeline.stage.artifacts import read_output, reading
from ...pipeline.stage.checksums import unseal
from ...pipeline.stage.console import print_json, print_note, print_result, print_table
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.files import write_bytes
from ...pipeline.stage.options import flag, require_choice
from ...pipeline.status import holds_files
from ..config import TrainConfig
from .config import RunsConfig
from .layout import CONFIG_NAME, LOG_NAME, METRICS_NAME
from .status import eval_status, holds_run, run_status

Row = dict[str, Any]  # column → text or number; None if it is not known

# Scores in the table, if any evaluation has them; --json and --csv list all.
SHOWN_SCORES = ("Bleu_4", "METEOR", "CIDEr", "SPICE", "CLIPScore", "RefCLIPScore")
FIRST_COLUMNS = ("run", "state", "dataset")


def show_runs(config: RunsConfig) -> None:
    """List the runs as a table, as JSON, or as CSV.

    Raises:
        ConfigError: `--sort` names no column.
        StorageError: the CSV file cannot be written.
    """
    rows, options = find_rows(config.data, config.names or ["*"])
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rows = [{column: row.get(column) for column in columns} for row in rows]
    if config.sort is not None and rows:
        rows = sort_rows(rows, match_column(config.sort, columns))
    print_json(rows)
    if config.csv is not None:
        text = format_csv(rows, columns)
        if config.csv == "-":
            print_result(text.rstrip("\n"))
        else:
            write_bytes(Path(config.csv).expanduser(), text.encode())
            print_note(f"runs: {len(rows):,} rows written to {config.csv}.")
    elif rows:
        _print_rows(rows, options, config)
    elif config.names:
        print_result(f"{config.data / 'runs'} has no runs named {', '.join(config.names)}.")
    else:
        print_result(f"{config.data / 'runs'} has no runs. Start with 'showtell train'.")


def find_rows(data: Path, names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Return a row for each evaluation and for each run without one.

    Args:
        data: root of all files.
        names: the runs and ensembles to list; `*` stands for any characters.

    Returns:
        rows: sorted by the names of runs and evaluations.
        options: the options of `showtell train` that differ between the runs; they are columns.
    """

    def find(kind: str) -> list[Path]:
        folders = sorted(data.glob(f"{kind}/*"))
        return [path for path in folders if any(fnmatchcase(path.name, name) for name in names)]

    runs = {run.name: run for run in find("runs") if holds_run(run)}
    trained = {name: read_options(run) for name, run in runs.items()}
    options = find_differing([known for known in trained.values() if known is not None])
    rows: list[Row] = []
    for name, run in runs.items():
        known = trained[name]
        row = dict.fromkeys(FIRST_COLUMNS) | {"run": name, "state": run_status(data, run).state}
        if known is None:
            row["state"] = f"damaged: {CONFIG_NAME}"
        else:
            row |= {option: known[option] for option in ("dataset", *options)}
            row |= read_best_epoch(run / LOG_NAME, known["monitor"])
        evaluated = list(evaluation_rows(data, run, row))
        rows += evaluated or [row]
    for ensemble in find("ensembles"):
        row = dict.fromkeys(FIRST_COLUMNS) | {"run": ensemble.name, "state": "done"}
        rows += evaluation_rows(data, ensemble, row)
    return rows, options


def read_options(run: Path) -> Row | None:
    """Return the options that a run was trained with; None if its config cannot be read."""
    path = run / CONFIG_NAME
    try:
        with reading(path):
            config = unseal(json.loads(read_output(path)))
            # Runs of earlier versions lack some options. `--features` may have been left out.
            options = TrainConfig().as_json() | config["train"] | {"features": config["features"]}
            return dict(options)
    except ShowTellError:
        return None


def find_differing(trained: Sequence[Row]) -> list[str]:
    """Return the names of the options that affect the result and differ between the runs."""
    names = ["features", *(name for name in TrainConfig().result_options() if name != "dataset")]
    return [name for name in names if len({json.dumps(known[name]) for known in trained}) > 1]


def read_best_epoch(log: Path, monitor: str) -> Row:
    """Return the number of epochs, the best one, its validation scores, and the seconds so far."""
    records = []
    for line in log.read_bytes().splitlines() if log.exists() else []:
        try:
            record = json.loads(line)
            records += [record] if f"val_{monitor}" in record else []
        except (ValueError, TypeError):  # `showtell train --resume` drops damaged lines
            continue
    if not records:
        return {}
    scores = [record[f"val_{monitor}"] for record in records]
    best = records[scores.index(max(scores))] if any(scores) else records[-1]
    names = [name for name in best if name.startswith("val_") and name != "val_seconds"]
    return {
        "num_epochs": records[-1]["epoch"],
        "best_epoch": best["epoch"],
        "seconds": records[-1].get("seconds"),
        **{name: best[name] for name in names},
    }


def evaluation_rows(data: Path, run: Path, row: Row) -> Iterator[Row]:
    """Yield the row of a run once for each evaluation, with its scores."""
    for folder in filter(holds_files, sorted(run.glob("eval/*"))):
        status, scores = eval_status(data, folder), Row()
        state = status.state
        try:
            with reading(folder / METRICS_NAME):
                metrics = json.loads(read_output(folder / METRICS_NAME))
                scores = {n: v for n, v in metrics.items() if n[0].isupper() or n == "num_images"}
        except ShowTellError:
            state = f"damaged: {METRICS_NAME}" if state == "done" else state
        state = row["state"] if row["state"] != "done" else state
        details = status.manifest.details if status.manifest else {}
        dataset = row["dataset"] or details.get("dataset")  # an ensemble has no config
        yield row | {"state": state, "dataset": dataset, "evaluation": folder.name} | scores


def match_column(name: str, columns: Sequence[str]) -> str:
    """Return the column that `--sort` names; case does not matter, and options may have dashes.

    Raises:
        ConfigError: there is none.
    """
    known = {column.lower(): column for column in columns}
    found = known.get(name.lower().removeprefix("--").replace("-", "_"), name)
    require_choice("--sort", found, columns)
    return found


def sort_rows(rows: Sequence[Row], column: str) -> list[Row]:
    """Sort numbers from high to low, and texts alphabetically; unknown values come last."""

    def key(row: Row) -> tuple[int, float, str]:
        value = row[column]
        if isinstance(value, int | float):
            return 0, -value, ""
        return (2, 0.0, "") if value is None else (1, 0.0, str(value))

    return sorted(rows, key=key)


def format_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the rows as CSV with a header; unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print_rows(rows: Sequence[Row], options: Sequence[str], config: RunsConfig) -> None:
    """Print the table, without columns that say nothing."""
    columns = list(rows[0])
    scores = [name for name in SHOWN_SCORES if name in columns]
    if config.sort is not None:
        by = match_column(config.sort, columns)
        scores += [by] if by[0].isupper() and by not in scores else []
    table = [_describe(row, options, scores) for row in rows]
    trivial = {"dataset": {table[0]["dataset"]}, "state": {"done"}}
    shown = [
        name for name in table[0] if {row[name] for row in table} - trivial.get(name, set()) - {""}
    ]
    lines = [tuple(row[name] for name in shown) for row in table]
    print_table(f"runs of {config.data}", lines, tuple(shown))


def _describe(row: Row, options: Sequence[str], scores: Sequence[str]) -> dict[str, str]:
    """Return a line of the table: scores times 100, and options as typed."""
    default = TrainConfig().as_json()
    given = [_format_option(name, row[name]) for name in options if row[name] != default[name]]
    epochs = f"{row['best_epoch']} of {row['num_epochs']}" if row.get("num_epochs") else ""
    return {
        "run": row["run"],
        "dataset": row["dataset"] or "",
        "options": " ".join(given),
        "best epoch": epochs,
        "val CIDEr": _percent(row.get("val_CIDEr")),
        "evaluation": row.get("evaluation") or "",
        **{name: _percent(row[name]) for name in scores},
        "state": row["state"],
    }


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _format_option(name: str, value: Any) -> str:
    """Return an option as typed: `--seed 1`, `--scst`, `--no-tie-embeddings`."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return "" if value is None else f"{flag(name)} {value}"

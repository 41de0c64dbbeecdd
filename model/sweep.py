"""The command `showtell sweep`: train many runs over the same features, and rank their settings.

Each run is a folder in data/runs, trained by `showtell train`. The folders are the only record of a
sweep: if it was stopped, or if its file has more values now, it trains what is missing.
"""

import itertools
from dataclasses import asdict

from ..features.device import choose_device
from ..pipeline.stage.command_line import command_line
from ..pipeline.stage.console import (
    ProgressLine,
    format_seconds,
    print_json,
    print_note,
    print_result,
    print_table,
    print_warning,
)
from ..pipeline.stage.errors import StoppedError
from ..pipeline.stage.memory import memory_for_features
from ..pipeline.stage.options import flag
from ..pipeline.stage.signals import deferred_signals
from .config import TrainConfig
from .runs.repair import has_started
from .sweeps.config import SweepConfig
from .sweeps.plan import Plan, Values, describe, read_plan
from .sweeps.search import Search, Setting
from .sweeps.worker import Outcome, Workers, describe_run
from .training.data import load_training_data
from .training.memory import choose_window
from .training.resume import require_same_run, resolve_options

# Options that determine the training data.
DATA_OPTIONS = (
    "dataset",
    "features",
    "views",
    "attention",
    "word_vectors",
    "init",
    "monitor",
    "scst_reward",
)


def sweep(config: SweepConfig) -> bool:
    """Train the runs of a sweep, and print its settings, best first.

    Returns:
        Whether all runs are finished.

    Raises:
        ConfigError: the file is invalid, or Optuna is not installed.
        MissingArtifactError: an earlier stage has not run.
        MismatchError: a run of the sweep exists with other options or inputs.
        StoppedError: a signal has stopped the sweep.
    """
    plan = read_plan(config.file, config.data)
    search = Search(plan)
    known = [run for settings in search.known for s in settings for run in plan.runs_of(s)]
    require_same_runs(plan, known)
    num_runs = len(search.order) * len(plan.runs_of({}))
    num_workers = min(config.workers, num_runs)
    if config.dry_run:
        show_plan(plan, search, known, memory_for_features() // num_workers)
        return True
    with (
        deferred_signals() as signals,
        Workers(plan, num_workers, signals) as workers,
        ProgressLine(f"sweep {plan.name}", num_runs, "runs") as line,
    ):

        def train_run(values: Values) -> Outcome:
            outcome = workers.train(values)
            if not signals:
                _note(plan, outcome)
                line.advance(1, text="runs")
            return outcome

        settings = search.train(train_run, num_workers)
    if signals:
        options = ("--workers", config.workers) if config.is_set("workers") else ()
        command = command_line(plan.data, "sweep", config.file, *options)
        raise StoppedError(
            f"The sweep was stopped by {signals[0].name}; its trainings have saved checkpoints. "
            f"Run '{command}' to continue.",
            signals[0],
        )
    return show_settings(plan, settings)


def require_same_runs(plan: Plan, known: list[Values]) -> None:
    """Check that the inputs exist, and that earlier runs have the same options and inputs.

    Raises:
        MissingArtifactError: an earlier stage has not run.
        MismatchError: a run of the sweep exists with other options or inputs.
    """

    def inputs(config: TrainConfig) -> str:
        return repr([getattr(config, name) for name in DATA_OPTIONS])

    lowest = {name: limits.low for name, limits in plan.search.items()}
    planned = known + [run for c in plan.combinations for run in plan.runs_of(c | lowest)]
    given = [plan.train_config(values) for values in planned]
    configs = [resolve_options(config, choose_device(config.device)) for config in given]
    for _, group in itertools.groupby(sorted(configs, key=inputs), key=inputs):
        same = [(config, plan.data / "runs" / str(config.run)) for config in group]
        data = load_training_data(same[0][0])
        for config, run_dir in same:
            if has_started(run_dir):
                require_same_run(
                    run_dir,
                    choose_window(config, run_dir),
                    data,
                    f"Rename {plan.path} to start another sweep, or delete the run.",
                )


def show_plan(plan: Plan, search: Search, known: list[Values], memory: int) -> None:
    """Print what the sweep would train."""
    runs = [describe_run(plan, values, memory) for values in known]
    num_chosen = len(search.order) * len(plan.runs_of({})) - len(known)
    print_json({"sweep": plan.name, "runs": runs, "num_runs_to_choose": num_chosen})
    for run in runs:
        print_result(f"{run['state']}: {run['command'] or run['run']}")
    if num_chosen:
        ranges = [f"{flag(name)} {r.low} to {r.high}" for name, r in plan.search.items()]
        print_result(f"{num_chosen:,} more runs with {', '.join(ranges)}, chosen by TPE.")


def _note(plan: Plan, outcome: Outcome) -> None:
    """Print that a run has ended."""
    if outcome.score is None:
        print_warning(f"{outcome.run} is not finished: {outcome.problem}")
        return
    print_note(
        f"{outcome.run}: val {monitor_of(plan)} {100 * outcome.score:.1f} | "
        f"epoch {outcome.best_epoch} of {outcome.num_epochs} | "
        f"{format_seconds(outcome.seconds or 0.0)}"
    )


def monitor_of(plan: Plan) -> str:
    """Return the validation score that the sweep maximizes."""
    return str(plan.fixed.get("monitor", TrainConfig().monitor))


def show_settings(plan: Plan, settings: list[Setting]) -> bool:
    """Print the settings, best first, and the runs that failed; return whether none did."""
    distinct = {describe(setting.options): setting for setting in settings}
    ranked = sorted(distinct.items(), key=lambda item: -(item[1].mean or -1.0))
    ranked.sort(key=lambda item: item[1].mean is None)
    documents = [
        {
            "options": setting.options,
            "mean": setting.mean,
            "std": setting.std,
            "runs": [asdict(run) for run in setting.runs],
        }
        for _, setting in ranked
    ]
    monitor = monitor_of(plan)
    print_json({"sweep": plan.name, "monitor": f"val_{monitor}", "settings": documents})
    rows = [
        (options or "-", _score(s), f"{len(s.scores)} of {len(s.runs)}", _best_run(s))
        for options, s in ranked
    ]
    print_table(f"sweep {plan.name}", rows, ("options", f"val {monitor}", "runs", "best run"))
    failed = [run for _, setting in ranked for run in setting.runs if run.score is None]
    for run in failed:
        print_result(f"failed: {run.run}: {run.problem}")
    return not failed


def _score(setting: Setting) -> str:
    """Return the mean score times 100, and its standard deviation over seeds."""
    if setting.mean is None:
        return ""
    spread = "" if setting.std is None else f" ± {100 * setting.std:.1f}"
    return f"{100 * setting.mean:.1f}{spread}"


def _best_run(setting: Setting) -> str:
    """Return the name of the run with the best score."""
    finished = [run for run in setting.runs if run.score is not None]
    return max(finished, key=lambda run: run.score or 0.0).run if finished else ""

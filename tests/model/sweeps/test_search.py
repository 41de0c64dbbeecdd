import itertools
import math
import sys
import time
from pathlib import Path

import pytest

from showtell.model.sweeps.plan import Plan, Values
from showtell.model.sweeps.search import Search, Setting
from showtell.model.sweeps.worker import Outcome
from showtell.pipeline.stage.errors import ConfigError

from .test_plan import plan_of

pytest.importorskip("optuna")

SEARCH = """
[grid]
cell = ["gru", "lstm"]
[search]
trials = 25
learning-rate = { low = 1e-5, high = 1e-1, log = true }
"""
BEST = {"gru": 1e-2, "lstm": 1e-4}


def train_run(values: Values) -> Outcome:
    """The score falls with the distance to the best learning rate of a cell."""
    error = math.log10(values["learning_rate"] / BEST[values["cell"]])
    return Outcome(str(values), values, score=1.0 - error**2)


def best_of(settings: list[Setting], cell: str) -> float:
    return max(s.mean or -math.inf for s in settings if s.options["cell"] == cell)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, SEARCH)


def test_search_finds_the_best_number_for_each_combination_of_the_grid(plan: Plan) -> None:
    settings = Search(plan).train(train_run, num_workers=2)
    assert [sum(s.options["cell"] == cell for s in settings) for cell in BEST] == [25, 25]
    assert all(best_of(settings, cell) > 0.98 for cell in BEST)
    late = [s.mean for s in settings[-20:]]
    early = [s.mean for s in settings[:20]]
    assert sum(late) > sum(early)


def test_combinations_are_trained_in_turn(plan: Plan) -> None:
    assert Search(plan).order[:4] == [0, 1, 0, 1]


def test_mean_and_deviation_over_seeds_are_of_the_finished_runs() -> None:
    runs = [Outcome(str(seed), {"seed": seed}, score) for seed, score in enumerate((0.5, 0.7))]
    setting = Setting({}, [*runs, Outcome("failed", {"seed": 2}, problem="a reason")])
    assert setting.mean == pytest.approx(0.6)
    assert setting.std == pytest.approx(math.sqrt(0.02))
    assert Setting({}, runs[:1]).std is None
    assert Setting({}, []).mean is None


def test_failed_runs_do_not_end_a_search(plan: Plan) -> None:
    numbers = itertools.count()

    def fail_often(values: Values) -> Outcome:
        return Outcome("x", values) if next(numbers) % 2 else train_run(values)

    settings = Search(plan).train(fail_often, num_workers=1)
    assert len(settings) == 50
    assert sum(s.mean is None for s in settings) == 25


def test_numbers_that_are_chosen_twice_are_trained_once(tmp_path) -> None:
    search = "[search]\ntrials = 6\nnum-layers = { low = 1, high = 2 }\n[grid]\nseed = [0, 1]\n"
    trained = list[str]()

    def train_slowly(values: Values) -> Outcome:
        trained.append(str(values))
        time.sleep(0.05)
        return Outcome(str(values), values, score=0.5)

    settings = Search(plan_of(tmp_path, search)).train(train_slowly, num_workers=4)
    assert [len(setting.runs) for setting in settings] == [2] * 6
    assert len(trained) == len(set(trained)) <= 4


def test_optuna_is_only_needed_for_a_sweep(plan: Plan, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"Run pip install 'showtell\[sweep\]'"):
        Search(plan)

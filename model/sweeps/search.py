"""The settings of a sweep: all combinations of the grid, and for each those that Optuna chooses."""

import statistics
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...pipeline.stage.errors import ConfigError
from .plan import Plan, Range, Values, describe
from .worker import Outcome

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study


@dataclass(frozen=True)
class Setting:
    """The runs with the same options, apart from the seed."""

    options: Values
    runs: list[Outcome]

    @property
    def scores(self) -> list[float]:
        """The scores of the finished runs."""
        return [run.score for run in self.runs if run.score is not None]

    @property
    def mean(self) -> float | None:
        """Mean score of the finished runs."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the scores over seeds; None of fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


class Search:
    """The settings to train.

    For each combination of the grid there is a study in memory, which first learns of the settings
    of earlier runs. A setting with stopped runs is among them, so that it is continued.

    Attributes:
        known: for each combination, the settings that are not left to choose.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.known = [
            list(plan.find_settings(combination)) if plan.search else [combination]
            for combination in plan.combinations
        ]
        self.studies = [make_study(settings, plan.search) for settings in self.known]
        self.lock = threading.Lock()

    @property
    def order(self) -> list[int]:
        """The combination of each setting, in the order of training."""
        counts = [max(self.plan.num_trials, len(settings)) for settings in self.known]
        return [i for n in range(max(counts)) for i, count in enumerate(counts) if n < count]

    def train(self, train_run: Callable[[Values], Outcome], num_workers: int) -> list[Setting]:
        """Train all settings.

        Args:
            train_run: trains the run with these options; called in several threads.
            num_workers: runs at the same time.
        """
        from optuna.trial import TrialState

        search = self.plan.search
        distributions = {name: make_distribution(limits) for name, limits in search.items()}
        started = dict[str, list[Future[Outcome]]]()
        with ThreadPoolExecutor(num_workers) as runs, ThreadPoolExecutor(num_workers) as settings:

            def train_setting(index: int) -> Setting:
                study = self.studies[index]
                with self.lock:
                    trial = study.ask(distributions)
                    chosen = {name: r.round(trial.params[name]) for name, r in search.items()}
                    options = self.plan.combinations[index] | chosen
                    # A search can choose the same numbers again, even before it knows their score.
                    if (key := describe(options)) not in started:
                        planned = self.plan.runs_of(options)
                        started[key] = [runs.submit(train_run, values) for values in planned]
                setting = Setting(options, [run.result() for run in started[key]])
                with self.lock:
                    state = TrialState.FAIL if setting.mean is None else None
                    study.tell(trial, setting.mean, state)
                return setting

            return list(settings.map(train_setting, self.order))


def make_study(known: Sequence[Values], search: Collection[str]) -> "Study":
    """Return a study in memory that first tries the known settings.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "'showtell sweep' needs the library optuna. Run pip install 'showtell[sweep]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # After earlier runs another seed: the same one would choose the same numbers again.
    sampler = optuna.samplers.TPESampler(seed=len(known))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for setting in known:
        study.enqueue_trial({name: setting[name] for name in search})
    return study


def make_distribution(limits: Range) -> "BaseDistribution":
    """Return a range as Optuna's distribution."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if limits.is_integer:
        return IntDistribution(int(limits.low), int(limits.high), log=limits.log)
    return FloatDistribution(limits.low, limits.high, log=limits.log)

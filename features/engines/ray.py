"""Compute feature shards on a Ray cluster, with Ray Data.

The driver divides the shard jobs into groups of consecutive shards and sends each, with its part
of the image list, to an actor. An actor is a `LocalEngine` in another process: it loads the network
once, writes the shards, and returns the skipped images. Ray restarts actors that were killed, on
another node if necessary, and gives them their group again; finished shards of it are kept.
"""

import logging
import pickle
import platform
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import ray
import ray.data
import torch

from ...pipeline.stage.console import ProgressLine, output_mode
from ...pipeline.stage.errors import MismatchError, ShowTellError, StorageError
from ...pipeline.stage.files import remove_partials
from ...pipeline.stage.stopwatch import Stopwatch
from ...pipeline.stage.urls import is_url
from ..config import FeaturesConfig
from ..encoders.family import is_weights_file
from ..encoders.network import NetworkInfo
from ..manifest import describe_network
from ..plan import ImageList, ShardJob, Skipped, find_finished
from ..remote_shards import delete_shard, fetch_shards, location_of
from ..shards import read_shard
from .engine import Engine
from .local import LocalEngine
from .ray_cluster import MAX_RESTARTS, Resources, connected, crashes_reported

MAX_GROUP, GROUPS_PER_ACTOR = 8, 4

USER_ERRORS = (ShowTellError, OSError, MemoryError)  # the command line prints one line

Row = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Group:
    """Consecutive shards, and the images that they need.

    Attributes:
        jobs: of the shards.
        images: the images of these jobs; the positions in `jobs` refer to this list.
    """

    jobs: tuple[ShardJob, ...]
    images: ImageList


@dataclass(frozen=True)
class Weights:
    """Options that can be used on any node: a weights file travels with them.

    Attributes:
        config: the stage's options.
        content: reference to the content of the weights file; None for weights with a name, which
            each node takes from its cache or downloads.
    """

    config: FeaturesConfig
    content: "ray.ObjectRef[bytes] | None"

    def load(self) -> LocalEngine:
        """Load the network on this node."""
        if self.content is None:
            return LocalEngine.load(self.config)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(self.config.weights).name)
            path.write_bytes(ray.get(self.content))
            engine = LocalEngine.load(replace(self.config, weights=str(path)))
        return replace(engine, config=replace(engine.config, weights=self.config.weights))


class ShardActor:
    """Computes groups of shards in a process of its own.

    Args:
        weights: the stage's options.
        network: from `describe_network`, of the network that the driver expects.
        directory: where the shards are written.
    """

    def __init__(self, weights: Weights, network: object, directory: Path) -> None:
        self.weights, self.network, self.directory = weights, network, directory
        self.engine: LocalEngine | None = None
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def __call__(self, batch: Row) -> Iterator[Row]:
        """Compute a batch of pickled groups; yield what `compute` yields, pickled."""
        for content in batch["group"]:
            for result in self.compute(pickle.loads(content)):
                yield {"result": np.array([pickle.dumps(result)], object)}

    def compute(self, group: Group) -> Iterator[Any]:
        """Compute a group of shards.

        Yields:
            (name of a shard, its skipped images) for each shard in order, then the time spent in
            each part; or, instead of the rest, the error that the user can fix.
        """
        try:
            if self.engine is None:
                self.engine = self.start()
            yield from self.compute_with(self.engine, group)
        except USER_ERRORS as error:
            yield error

    def start(self) -> LocalEngine:
        """Load the network, and check that this node computes what the driver expects."""
        has_store = self.weights.config.store is not None
        if not has_store:
            require_folder(self.directory, "Give --store a URL, or share the data folder")
        torch.set_num_threads(num_cpus_here())
        engine = replace(self.weights.load(), keeps_files=not has_store)
        if describe_network(engine.config, engine.network) != self.network:
            raise MismatchError(
                f"The worker on {platform.node()} loaded another network than the first one: other "
                "weights, or another version of showtell. Install the same version on all nodes."
            )
        return engine

    def compute_with(self, engine: LocalEngine, group: Group) -> Iterator[Any]:
        """Compute the shards that do not exist yet: an actor may have been killed after some."""
        if any(group.images.stamps) and not is_url(group.images.source):
            require_folder(Path(group.images.source), "Share the folder of the images")
        if engine.config.store is None:
            yield from self.compute_in(self.directory, engine, group)
            return
        with tempfile.TemporaryDirectory(prefix="showtell-") as folder:
            stored = [job for job in group.jobs if not engine.config.is_recomputed(job.name)]
            fetch_shards(engine.config, stored, Path(folder))
            yield from self.compute_in(Path(folder), engine, group)

    def compute_in(self, directory: Path, engine: LocalEngine, group: Group) -> Iterator[Any]:
        """Compute the shards that a folder does not have yet.

        The results come in the order of the jobs, as they would the first time: if Ray repeats a
        task, it takes only the results that it has not received yet.
        """
        network, config, watch = engine.network, engine.config, Stopwatch()
        finished = find_finished(
            group.jobs,
            directory,
            directory,
            done=None,
            feature_dim=network.feature_dim,
            grid_shape=(network.num_cells, network.grid_dim) if config.grid else None,
        )
        if not engine.keeps_files:
            for name in finished:
                delete_shard(config, directory / name)
        todo = [job for job in group.jobs if job.name not in finished]
        computed = engine.compute(group.images, todo, directory, watch)
        with output_mode(quiet=True), closing(computed):
            for job in group.jobs:
                skipped = finished[job.name] if job.name in finished else next(computed)[1]
                yield job.name, skipped
            next(computed, None)  # waits until all files are written
        yield watch.parts


def require_folder(path: Path, advice: str) -> None:
    """Refuse to work on a node that does not see a folder of the driver.

    Raises:
        StorageError: naming the node and the folder.
    """
    if not path.is_dir():
        raise StorageError(
            f"{path} does not exist on {platform.node()}, a node of the Ray cluster. {advice} "
            "with all nodes under the same path."
        )


def num_cpus_here() -> int:
    """Return the number of cores that Ray has assigned to this task or actor."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def describe(weights: Weights) -> tuple[NetworkInfo, str] | Exception:
    """Load the network on a node; return its description and its precision, or the error."""
    try:
        engine = weights.load()
    except USER_ERRORS as error:
        return error
    return engine.network, engine.config.precision


def describe_on_node(weights: Weights, resources: Resources) -> tuple[NetworkInfo, str] | Exception:
    """Return what `describe` returns on a node with the device of the actors."""
    if not resources.num_gpus:
        return describe(weights)  # here, which is faster
    # `max_calls`: its process would keep the memory of the network.
    options = {"max_calls": 1, "max_retries": MAX_RESTARTS, **resources.options()}
    task = ray.remote(**options)(describe)
    found: tuple[NetworkInfo, str] | Exception = ray.get(task.remote(weights))
    return found


@dataclass(frozen=True)
class RayEngine(Engine):
    """Networks in the actors of a Ray cluster, which this process is connected to.

    Attributes:
        config: the stage's options, with the precision used.
        device: of each actor.
        info: the network without its weights.
        resources: of the actors.
        weights: what the actors load the network from.
    """

    config: FeaturesConfig
    device: torch.device
    info: NetworkInfo
    resources: Resources
    weights: Weights

    @property
    def network(self) -> NetworkInfo:
        """The network without its weights."""
        return self.info

    @classmethod
    @contextmanager
    def open(cls, config: FeaturesConfig) -> Iterator[Self]:
        """Connect to the cluster, or start a Ray on this machine; load the network on one node.

        Raises:
            ConfigError: an option is invalid, or the cluster cannot be reached.
            WeightsError: the weights cannot be downloaded or verified, or do not fit.
        """
        with connected(config.address), crashes_reported():
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            resources = Resources.choose(config.device, nodes)
            is_file = is_weights_file(config.weights)
            content = ray.put(Path(config.weights).read_bytes()) if is_file else None
            weights = Weights(resources.set_in(config), content)
            found = describe_on_node(weights, resources)
            if isinstance(found, Exception):
                raise found
            network, precision = found
            weights = replace(weights, config=replace(weights.config, precision=precision))
            config = replace(config, precision=precision)
            yield cls(config, torch.device(resources.device), network, resources, weights)

    def compute(
        self,
        images: ImageList,
        jobs: Sequence[ShardJob],
        directory: Path,
        watch: Stopwatch,
    ) -> Generator[tuple[ShardJob, Skipped], None, None]:
        """Compute shards as `Engine.compute` does.

        Args:
            images: all images of the dataset.
            jobs: the shards to compute.
            directory: where the shards are written; without `--store`, all nodes see it.
            watch: measures the time that actors spend waiting for `read`, `model` and `write`.
        """
        if not jobs:
            return
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        by_name = {job.name: job for job in jobs}
        num_finished = len(images) - sum(len(job) for job in jobs)
        progress = ProgressLine("features", total=len(images), unit="img", start=num_finished)
        groups = split_into_groups(images, jobs, self.resources.num_actors)
        try:
            with progress:
                for result in self.run(groups, directory):
                    if isinstance(result, Exception):
                        raise result
                    if isinstance(result, dict):
                        for part, seconds in result.items():
                            watch.add(part, seconds / self.resources.num_actors)
                        continue
                    name, skipped = result
                    progress.advance(len(by_name[name]), watch.shares())
                    yield by_name[name], skipped
            if self.config.store is not None:
                self.fetch(jobs, directory)
        finally:
            remove_partials(directory)  # of killed actors

    def fetch(self, jobs: Sequence[ShardJob], directory: Path) -> None:
        """Copy the shards that the workers have put into the store, and verify them.

        Raises:
            StorageError: the store lacks some of them.
            BadShardError: one is damaged.
            MismatchError: one is of another run.
        """
        count = fetch_shards(self.config, jobs, directory)
        if count < len(jobs):
            raise StorageError(
                f"{self.config.store} has {count} of the {len(jobs)} shards that the workers put "
                "there. Run the same command again: it computes the missing ones."
            )
        for job in jobs:
            shard = read_shard(directory / job.name, self.network.feature_dim)
            if shard.fingerprint not in (job.fingerprint, job.retry_fingerprint):
                raise MismatchError(
                    f"Another run, of other options or images, has replaced "
                    f"{location_of(self.config, job.name)}. Run the same command again with a "
                    "--store of its own."
                )

    def run(self, groups: Iterable[Group], directory: Path) -> Iterator[Any]:
        """Send groups to the actors; yield what `ShardActor.compute` yields."""
        network = describe_network(self.config, self.network)
        rows = [{"group": pickle.dumps(group)} for group in groups]
        pool = ray.data.ActorPoolStrategy(
            size=min(self.resources.num_actors, len(rows)), max_tasks_in_flight_per_actor=1
        )
        with warnings.catch_warnings():
            # Ray wants to name all parameters of actors, but has no name for this one yet.
            warnings.simplefilter("ignore")
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                ShardActor,
                fn_constructor_args=(self.weights, network, directory),
                batch_size=1,
                batch_format="numpy",
                compute=pool,
                max_restarts=MAX_RESTARTS,
                **self.resources.options(),
            )
        context = dataset.context
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = 1  # bytes: each result is sent at once
        context.raise_original_map_exception = True
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=0
        ):
            yield from (pickle.loads(content) for content in batch["result"])


def split_into_groups(images: ImageList, jobs: Sequence[ShardJob], num_actors: int) -> list[Group]:
    """Group consecutive shards: an actor reads ahead from one to the next inside a group.

    Groups are small enough that all actors end at about the same time.
    """
    size = max(1, min(MAX_GROUP, len(jobs) // (GROUPS_PER_ACTOR * num_actors)))
    groups = []
    for first in range(0, len(jobs), size):
        chosen = jobs[first : first + size]
        start = chosen[0].start
        part = images.part(start, chosen[-1].stop)
        moved = (replace(job, start=job.start - start, stop=job.stop - start) for job in chosen)
        groups.append(Group(tuple(moved), part))
    return groups

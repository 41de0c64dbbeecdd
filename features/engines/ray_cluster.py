"""A Ray cluster: connect to it or start one on this machine, and what its nodes can run."""

import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    WorkerCrashedError,
)

from ...pipeline.stage.errors import ConfigError, ShowTellError
from ...pipeline.stage.signals import Stopped, signal_handlers_kept
from ..config import FeaturesConfig
from ..reading.batches import count_cores
from ..reading.broken_images import one_line

# Threads that decode images share Python's lock, so more cores would wait for each other.
MAX_CORES_PER_ACTOR = 4
# One core each is faster (docs/scale.md), but each actor has a copy of the network and its buffers.
BYTES_PER_ACTOR = 3 << 30
# Of each worker. Retries of a task are not limited: they pass quickly while a lost node is noticed.
MAX_RESTARTS = 20
CONNECT_TIMEOUT_S = 10.0
STORE_BYTES = 256 << 20  # object store of a local Ray; it holds file names and a weights file

logger = logging.getLogger(__name__)


class LostWorkersError(ShowTellError):
    """Ray has lost workers too often; its logs may tell why."""


@dataclass(frozen=True)
class Resources:
    """What one actor uses, and how many of them the cluster can run.

    Attributes:
        num_actors: in the whole cluster.
        num_cpus: of each actor.
        num_gpus: of each actor, 0 or 1.
    """

    num_actors: int
    num_cpus: int
    num_gpus: int

    @classmethod
    def choose(cls, device: str, nodes: Sequence[Mapping[str, float]]) -> Self:
        """Divide the nodes of a cluster so that each core or GPU belongs to one actor.

        Args:
            device: the value of `--device`.
            nodes: the resources of each node, such as {"CPU": 16, "GPU": 2, "memory": 32 << 30}.

        Raises:
            ConfigError: the cluster does not have this device.
        """
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"--device must be auto, cpu or cuda with --engine ray, got {device!r}: Ray "
                "chooses the GPU of each worker."
            )
        if device == "cuda" and not any(gpus):
            raise ConfigError(
                f"--device cuda is not available: none of the {len(nodes)} nodes of the Ray "
                "cluster has a GPU. Use --device auto."
            )
        if device != "cpu" and any(gpus):
            shares = [cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu]
            return cls(sum(gpus), max(1, min(shares)), 1)
        if not any(cpus):
            raise ConfigError("--engine ray: no node of the Ray cluster offers a CPU.")
        num_cpus = min(MAX_CORES_PER_ACTOR, *(cpu for cpu in cpus if cpu))
        if all(node.get("memory", 0) >= BYTES_PER_ACTOR * node.get("CPU", 0) for node in nodes):
            num_cpus = 1
        return cls(sum(cpu // num_cpus for cpu in cpus), num_cpus, 0)

    @property
    def device(self) -> str:
        """`--device` of an actor."""
        return "cuda" if self.num_gpus else "cpu"

    def set_in(self, config: FeaturesConfig) -> FeaturesConfig:
        """Return the options of an actor: its device, and a decoding worker for each core."""
        num_workers = config.num_workers or self.num_cpus
        return replace(config, device=self.device, num_workers=num_workers)

    def options(self) -> dict[str, Any]:
        """Return the options of a task or an actor of Ray."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or run a Ray on this machine during the `with` block.

    Raises:
        ConfigError: there is no cluster at this address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # it prints a warning
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the local engine; Ray's default is 15
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        with signal_handlers_kept(), stderr_hidden():
            try:
                if address is None:
                    folder = stack.enter_context(ray_folder())
                    ray.init(
                        "local",
                        num_cpus=count_cores(),
                        include_dashboard=False,
                        object_store_memory=STORE_BYTES,
                        _temp_dir=folder,
                        **quiet,
                    )
                else:
                    require_reachable(address)
                    ray.init(address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                where = "--engine ray" if address is None else f"--address {address}"
                raise ConfigError(
                    f"{where}: {one_line(error)}. 'ray status' shows whether a cluster runs here; "
                    "without --address, a Ray starts on this machine."
                ) from None
        stack.callback(ray.shutdown)
        stack.enter_context(messages_hidden())
        yield


@contextmanager
def messages_hidden() -> Iterator[None]:
    """Hide Ray's messages about each lost worker, which no option of Ray turns off."""
    module, name = ray._private.worker, "print_to_stdstream"
    show = getattr(module, name, None)
    setattr(module, name, lambda data, **_: logger.info("%s", data))
    try:
        yield
    finally:
        setattr(module, name, show)


@contextmanager
def stderr_hidden() -> Iterator[None]:
    """Discard what native code writes to stderr: Ray announces there that it logs little."""
    sys.stderr.flush()
    copy, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(copy, 2)
        os.close(copy)
        os.close(sink)


def require_reachable(address: str) -> None:
    """Check that somebody listens at `host:port`: Ray itself would wait forever.

    Raises:
        OSError: nobody does.
        ValueError: `address` is neither `auto` nor `host:port`.
    """
    if address == "auto":
        return
    host, separator, port = address.rpartition(":")
    if not separator or "/" in host or not port.isdigit():
        raise ValueError("expected auto or HOST:PORT, such as 10.0.0.1:6379")
    socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


@contextmanager
def ray_folder() -> Iterator[str]:
    """Yield a folder for the sockets and logs of a local Ray; it is kept if Ray fails.

    Paths of sockets may have at most 107 bytes, so it is not in a long temporary folder.
    """
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="showtell-ray-", dir=parent)
    try:
        yield folder
    except LostWorkersError:
        raise
    except (ShowTellError, Stopped):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def crashes_reported() -> Iterator[None]:
    """Turn the errors of Ray about killed workers into one that names the logs.

    Raises:
        LostWorkersError: a worker cannot start, was killed again and again, or the cluster is gone.
    """
    try:
        yield
    except (RayActorError, OutOfMemoryError, WorkerCrashedError, RaySystemError) as error:
        if getattr(error, "actor_init_failed", False):  # such as a module that cannot be imported
            raise LostWorkersError(
                f"A worker of the Ray cluster cannot start ({str(error).splitlines()[-1]}). "
                "Install the same version of showtell[ray] on all nodes; Ray's logs are in "
                f"{ray_logs()}."
            ) from None
        raise LostWorkersError(
            f"Ray lost a worker more than {MAX_RESTARTS} times, or the whole cluster, most likely "
            f"because memory ran out ({one_line(error)[:200]}). Finished shards are kept. Run the "
            "command again with a smaller --batch-size or --num-workers; Ray's logs are in "
            f"{ray_logs()}."
        ) from None


def ray_logs() -> str:
    """Return the folder of Ray's logs on this node."""
    node: Any = ray._private.worker._global_node
    return str(node.get_logs_dir_path())

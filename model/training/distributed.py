"""Train with several processes that torchrun has started: the only user of torch.distributed.

All processes (ranks) plan the same epoch. Each takes its part of every batch, the gradients are
summed, and each makes the same optimizer step. Rank 0 alone prints and writes files.

An error on any rank ends all of them. Whoever meets an error first prints it; the others notice
that the connection to it is closed, and exit without a message.

Gradients are summed by one all-reduce after the backward pass. DistributedDataParallel sends them
during it, but is not faster for models of this size, and works through `forward` alone, while the
losses here call several methods of a decoder.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ...features.device import choose_device
from ...features.reading.batches import count_cores
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.console import silence_errors, silence_output
from ...pipeline.stage.errors import (
    ConfigError,
    MismatchError,
    ShowTellError,
    StoppedError,
)
from ...pipeline.stage.signals import SIGNALS, expect_repeated_signals, silence_report
from ..runs.layout import LAST_NAME
from .batches import CaptionBatch, CaptionBatches
from .loss import Share

# How long a rank waits for another one. A process that was killed is noticed at once; this limit is
# for a machine that has lost its power or its network.
TIMEOUT = timedelta(minutes=10)
group_numbers = itertools.count()  # groups joined by this process
SEED_STRIDE = 1_000_003  # between the seeds of two ranks

T = TypeVar("T")


class ProcessLostError(ShowTellError):
    """The connection to another process of the training is closed."""


class Group:
    """The processes that train one run together; by default this process alone.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        store: key-value store shared by the processes; None if this process was not started by
            torchrun. Then no method communicates.
        run_dir: folder of the run, once it is known.
    """

    run_dir: Path | None = None

    def __init__(self, rank: int = 0, size: int = 1, store: PrefixStore | None = None) -> None:
        self.rank, self.size, self.store = rank, size, store

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def choose_device(self, name: str) -> torch.device:
        """Return the device for `--device`: on a machine with GPUs, each process has its own.

        Raises:
            ConfigError: this machine lacks the device, or it cannot be shared.
        """
        device = choose_device(name)
        if self.store is None or device.type == "cpu":
            return device
        num_processes, num_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if device.type != "cuda":
            raise ConfigError(f"--device {name} cannot be used with torchrun. Use --device cpu.")
        if device.index is None:
            if num_processes > num_gpus:
                raise ConfigError(
                    f"torchrun starts {num_processes} processes on this machine, which has "
                    f"{num_gpus} GPUs. Use 'torchrun --nproc-per-node {num_gpus}', or --device cpu."
                )
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        elif num_processes > 1:
            raise ConfigError(
                f"--device {name} is one GPU, but each process needs its own. Use --device cuda."
            )
        torch.cuda.set_device(device)
        return device

    # --- decisions ------------------------------------------------------------------------------

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0, and return its result on all ranks."""
        result = function() if self.is_first else None
        return self.gather(result)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks."""
        if self.store is None:
            return [value]
        values: list[Any] = [None] * self.size
        with self._noticing_lost_processes():
            dist.all_gather_object(values, value)
        return values

    def sum(self, value: float) -> float:
        """Return the sum of a number over all ranks."""
        return self._reduce([value], dist.ReduceOp.SUM)[0]

    def max(self, *values: float) -> list[float]:
        """Return the maximum over all ranks of each number."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Iterable[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.store is None:
            return list(values)
        reduced = torch.tensor(list(values), dtype=torch.float64)
        with self._noticing_lost_processes():
            dist.all_reduce(reduced, operation)
        numbers: list[float] = reduced.tolist()
        return numbers

    def require_equal(self, name: str, value: object) -> None:
        """Check that all ranks have the same value.

        Raises:
            MismatchError: the value of another rank differs from that of rank 0.
        """
        for rank, other in enumerate(values := self.gather(value)):
            if other != values[0]:
                raise MismatchError(
                    f"{name} of process {rank} differ from those of process 0. All machines must "
                    "read the same data folder, or exact copies of it."
                )

    # --- training -------------------------------------------------------------------------------

    def gather_part(
        self, batches: CaptionBatches, positions: Tensor, views: Tensor | None = None
    ) -> tuple[CaptionBatch, Share]:
        """Gather this rank's part of a batch, and return how to weight its losses.

        A rank takes every `size`-th caption, or with `by_image` every `size`-th image. The captions
        of a batch are sorted by length, so that all parts take equally long.
        """
        if self.size == 1:
            return batches.gather(positions, views), self.share
        numbers = torch.arange(len(positions))
        if batches.by_image:  # the captions of an image are neighbours
            numbers = batches.rows[positions].unique_consecutive(return_inverse=True)[1]
        part = positions[numbers % self.size == self.rank]
        if len(part):
            return batches.gather(part, views), self.share
        # There are fewer captions or images than ranks: take one of another rank with weight 0.
        return batches.gather(positions[:1], views), lambda count: self.share(0)

    def share(self, count: int) -> float:
        """Return the share of this rank in the sum of a count over all ranks."""
        return count / self.sum(count)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by its sum over all ranks."""
        if self.store is None:
            return
        listed = list(parameters)
        grads = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in listed]
        flat = torch.cat([grad.flatten() for grad in grads])
        with self._noticing_lost_processes():
            dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in listed]
        for parameter, grad in zip(listed, flat.split(sizes), strict=True):
            parameter.grad = grad.view_as(parameter)

    def copy_from_first(self, module: nn.Module) -> None:
        """Set parameters and buffers to those of rank 0."""
        if self.store is None:
            return
        with self._noticing_lost_processes():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def draw_differently(self, seed: int) -> None:
        """Seed the random generators of ranks other than 0, so that each drops other units."""
        if not self.is_first:
            torch.manual_seed((seed + SEED_STRIDE * self.rank) % 2**32)

    @contextmanager
    def _noticing_lost_processes(self) -> Iterator[None]:
        """Turn the error of a closed connection into a `ProcessLostError`."""
        try:
            yield
        except RuntimeError as error:
            advice = "Run the same command again."
            if self.run_dir is not None and (self.run_dir / LAST_NAME).exists():
                advice = f"Run '{resume_command(self.run_dir)}' to continue."
            raise ProcessLostError(
                "a process of the training was lost: it was killed, or its machine cannot be "
                f"reached ({first_line(error)}). {advice}"
            ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error of torch.distributed, which may have many."""
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def resume_command(run_dir: Path) -> str:
    """Return the command that continues a run with as many processes as now."""
    command = command_line(run_dir.parents[1], "train", "--run", run_dir.name, "--resume")
    if not dist.is_torchelastic_launched():
        return command
    # Without "--", torchrun would take `--run` for an option of its own.
    nodes = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    options = f"--nnodes {nodes} [...] " if nodes > 1 else ""
    return f"torchrun {options}--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']} -m -- {command}"


@contextmanager
def joined_group() -> Iterator[Group]:
    """Join the processes that torchrun has started, for the `with` block.

    Without torchrun, yield a group of this process alone, and touch nothing.
    """
    if not dist.is_torchelastic_launched():
        yield Group()
        return
    with _reported_once(group := _join()):
        try:
            yield group
        except StoppedError:  # on all ranks
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()


def _join() -> Group:
    expect_repeated_signals()
    num_processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if num_processes > 1 and os.environ.get("OMP_NUM_THREADS") == "1":  # as torchrun sets it
        torch.set_num_threads(max(1, count_cores() // num_processes))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        group = Group(rank, size, PrefixStore(f"showtell-{next(group_numbers)}", store))
        dist.init_process_group(
            backend, store=group.store, rank=rank, world_size=size, timeout=TIMEOUT
        )
    except RuntimeError as error:
        raise ProcessLostError(
            f"process {os.environ['RANK']} of the training cannot reach the others: "
            f"{first_line(error)}. If a machine has several networks, name the one to use in "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
        ) from error
    if not group.is_first:  # only now, because each process prints its own error until here
        silence_output()
    return group


@contextmanager
def _reported_once(group: Group) -> Iterator[None]:
    """Let one process alone print the error that ends the training."""
    try:
        yield
    except BaseException:
        # torchrun stops the other processes once one has ended.
        for number in SIGNALS:
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, signal.SIG_IGN)
        is_reporter = True
        with suppress(RuntimeError):  # the store is gone
            assert group.store is not None
            is_reporter = group.store.add("reporters", 1) == 1
        silence_errors(not is_reporter)
        if not is_reporter:
            silence_report()
        raise

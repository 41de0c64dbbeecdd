"""Kill parts of a Ray cluster while it computes features, and count what survives.

    python tests/chaos/cluster.py [--quick] [--rounds N] [--faults FAULT…] [--output DIR]

A local cluster has a head node without cores and two nodes with one core. Each trial computes
features of drawn images with `showtell features --engine ray` and is disturbed once. It survives if
every shard and every fingerprint of the manifest equals that of `--engine local`, and the logs of
the workers name no shard more often than it had to be written. `--quick` is the short version of
`make test`: a killed actor and a killed driver in one run, on one node. Exit status 1: a trial did
not survive.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Ray's workers would wait for all other processes of a busy machine.
os.environ |= {"RAY_worker_niceness": "0"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}

from ray.cluster_utils import Cluster

SCENES = ("--dataset", "scenes")
NETWORK = ("--encoder", "resnet18", "--image-size", "64", "--batch-size", "4", "--shard-size", "4")
FOLDER, STORE_FOLDER = "scenes/features/resnet18-random-64", "store/scenes/resnet18-random-64"
MEMORY = {"object_store_memory": 10**8}
TIMEOUT_S = 400.0
SURVIVED, LOST, TWICE, DIFFERENT = OUTCOMES = ("survived", "lost", "twice", "different")


class TrialError(Exception):
    """A command failed, or did not end: its work is lost."""


@dataclass
class Trial:
    """A run of the stage on the cluster.

    Attributes:
        root: folder with the data folders.
        cluster: with two nodes.
        data: the data folder of this trial.
        store: whether the workers write to `--store`.
        allowed: shard → number of times that it may be written; once if it is not listed.
        driver: the command that runs.
    """

    root: Path
    cluster: Cluster
    data: Path
    store: bool = False
    allowed: Counter[str] = field(default_factory=Counter)
    driver: subprocess.Popen[str] | None = None

    def start(self) -> None:
        words = ["--engine", "ray", "--address", self.cluster.address]
        if self.store:
            words += ["--store", str(self.data / "store")]
        self.driver = showtell(self.root, self.data, *words)

    def finished(self) -> list[Path]:
        folder = self.data / (STORE_FOLDER if self.store else FOLDER)
        return sorted(folder.glob("part-*.h5"))

    def wait_for_shards(self, count: int) -> None:
        assert self.driver is not None
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.finished()) < count:
            if self.driver.poll() is not None or time.monotonic() > deadline:
                raise TrialError(f"no {count} shards: {self.end(signal.SIGKILL)}")
            time.sleep(0.01)

    def end(self, number: signal.Signals | None = None) -> str:
        """Send a signal to the driver, or wait for its end; return its output."""
        assert self.driver is not None
        if number is not None:
            self.driver.send_signal(number)
        try:
            return self.driver.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            self.driver.kill()
            raise TrialError(f"no end: {self.driver.communicate()[0]}") from None

    def finish(self) -> None:
        output = self.end()
        if self.driver is None or self.driver.returncode:
            raise TrialError(output)

    def outcome(self) -> tuple[str, str]:
        """Compare the result with that of the local engine, and the logs with the shards."""
        expected, actual = content_of(self.root / "local"), content_of(self.data)
        if missing := expected.keys() - actual.keys():
            return LOST, f"missing: {sorted(missing)}"
        if different := [name for name in expected if expected[name] != actual[name]]:
            return DIFFERENT, f"different: {different}"
        if extra := actual.keys() - expected.keys():
            return DIFFERENT, f"not expected: {sorted(extra)}"
        logs = Path(self.cluster.head_node.get_logs_dir_path()).glob("worker-*.err")
        line = re.compile(rf"{re.escape(str(self.data))}/\S*/(part-\S+) is written")
        written = Counter(name for log in logs for name in line.findall(log.read_text()))
        twice = {n: count for n, count in written.items() if count > max(1, self.allowed[n])}
        if twice or not written:
            return TWICE, f"written: {dict(written)}"
        return SURVIVED, ""


def showtell(root: Path, data: Path, *words: str) -> "subprocess.Popen[str]":
    command = ("features", *SCENES, *NETWORK, "--weights", str(root / "random.pth"))
    return subprocess.Popen(
        [sys.executable, "-m", "showtell", *command, "--data", str(data), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def content_of(data: Path) -> dict[str, object]:
    """Return the bytes of each file of the features, and what the manifest says of the shards."""
    folder = data / FOLDER
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= dict.fromkeys((".lock", "manifest.json", ".manifest.json"), b"")  # compared below
    keys = ("config", "inputs", "outputs", "counts", "skipped", "checksums")
    return files | {key: manifest[key] for key in keys} | {"f": manifest["details"]["fingerprints"]}


def children_of(pid: int) -> dict[int, str]:
    """Return pid → command line of the processes that a process has started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(path.name)] = (path / "cmdline").read_text()
        except OSError:
            continue
    return found


def raylet_of(node: object) -> int:
    return node.all_processes["raylet"][0].process.pid


def workers_of(trial: Trial) -> list[int]:
    """Return the processes of all actors that compute shards."""
    nodes = trial.cluster.list_all_nodes()
    children = {p: c for node in nodes for p, c in children_of(raylet_of(node)).items()}
    return [pid for pid, command in children.items() if "ShardActor" in command]


def kill_actor(trial: Trial) -> None:
    os.kill(random.choice(workers_of(trial)), signal.SIGKILL)
    trial.finish()


def kill_all_workers(trial: Trial) -> None:
    for node in trial.cluster.worker_nodes:
        for pid, command in children_of(raylet_of(node)).items():
            if "ray::" in command and "Agent" not in command:  # without agents, a node is lost
                os.kill(pid, signal.SIGKILL)
    trial.finish()


def kill_node(trial: Trial, *, replace: bool) -> None:
    node = random.choice(list(trial.cluster.worker_nodes))
    os.kill(raylet_of(node), signal.SIGKILL)
    if replace:
        trial.cluster.add_node(num_cpus=1, **MEMORY)
    trial.finish()
    trial.cluster.remove_node(node, allow_graceful=False)
    if not replace:
        trial.cluster.add_node(num_cpus=1, **MEMORY)


def kill_driver(trial: Trial, number: signal.Signals = signal.SIGKILL) -> None:
    output = trial.end(number)
    assert trial.driver is not None
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    lines = [line for line in output.splitlines() if not line.startswith("features ")]
    if trial.driver.returncode != expected or len(lines) != (number != signal.SIGKILL):
        raise TrialError(f"exit status {trial.driver.returncode}, output {output!r}")
    trial.start()
    trial.finish()


def damage_shard(trial: Trial, *, delete: bool) -> None:
    """Kill the driver; delete a finished shard or flip one of its bits; start the driver again."""
    trial.end(signal.SIGKILL)
    path = random.choice(trial.finished())
    if delete:
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
    trial.allowed[path.name] = 2
    trial.start()
    trial.finish()


def kill_actor_and_driver(trial: Trial) -> None:
    os.kill(random.choice(workers_of(trial)), signal.SIGKILL)
    trial.wait_for_shards(len(trial.finished()) + 1)
    kill_driver(trial)


FAULTS: dict[str, Callable[[Trial], None]] = {
    "actor killed": kill_actor,
    "all workers killed": kill_all_workers,
    "node killed, replaced": lambda trial: kill_node(trial, replace=True),
    "node killed, not replaced": lambda trial: kill_node(trial, replace=False),
    "driver killed": kill_driver,
    "driver stopped by SIGTERM": lambda trial: kill_driver(trial, signal.SIGTERM),
    "driver stopped by Ctrl-C": lambda trial: kill_driver(trial, signal.SIGINT),
    "driver killed, shard deleted": lambda trial: damage_shard(trial, delete=True),
    "actor and driver killed, --store": lambda trial: kill_actor_and_driver(trial),
    "driver killed, shard deleted, --store": lambda trial: damage_shard(trial, delete=True),
    "driver killed, bit flipped": lambda trial: damage_shard(trial, delete=False),
}
QUICK_FAULTS = {"actor killed, then driver": kill_actor_and_driver}


def prepare(root: Path, num_images: int) -> None:
    """Draw images, prepare the dataset and compute its features with the local engine."""
    import torch
    from torchvision.models import resnet18

    from showtell.features.config import FeaturesConfig
    from showtell.features.extract import extract
    from showtell.pipeline.config import PrepareConfig
    from showtell.pipeline.datasets.scenes import draw_scenes
    from showtell.pipeline.prepare import prepare

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), root / "random.pth")
    data = root / "prepared"
    draw_scenes(data / "scenes/raw", num_train=num_images - 20, num_val=10, num_test=10)
    prepare(PrepareConfig(data=data, dataset="scenes", min_count=1))
    shutil.copytree(data, root / "local")
    extract(
        FeaturesConfig(
            data=root / "local",
            dataset="scenes",
            encoder="resnet18",
            weights=str(root / "random.pth"),
            image_size=64,
            batch_size=4,
            shard_size=4,
        )
    )


def run(
    root: Path, rounds: int, faults: dict[str, Callable[[Trial], None]], num_nodes: int
) -> list[dict[str, str]]:
    """Run the trials; return fault, outcome and what was wrong for each."""
    head = {"num_cpus": 0 if num_nodes else 1, "include_dashboard": False, **MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    results = []
    try:
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=1, **MEMORY)
        for index in range(rounds):
            for fault, strike in faults.items():
                data = root / f"data{len(results)}"
                shutil.copytree(root / "prepared", data)
                trial = Trial(root, cluster, data, store="--store" in fault)
                trial.start()
                started = time.monotonic()
                try:
                    trial.wait_for_shards(1 + 3 * index)
                    strike(trial)
                    outcome, detail = trial.outcome()
                except TrialError as error:
                    outcome, detail = LOST, str(error)
                seconds = time.monotonic() - started
                print(f"{fault}: {outcome}, {seconds:.0f} s {detail}", flush=True)
                results.append({"fault": fault, "outcome": outcome, "detail": detail})
                shutil.rmtree(data)
    finally:
        cluster.shutdown()
    return results


def main() -> int:
    # A job in the background of a script ignores Ctrl-C, and so would the commands that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faults", nargs="+", choices=tuple(FAULTS), default=tuple(FAULTS))
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    faults, rounds = {fault: FAULTS[fault] for fault in options.faults}, options.rounds
    if options.quick:
        faults, rounds = QUICK_FAULTS, 1
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        prepare(Path(folder), 40 if options.quick else 200)
        results = run(Path(folder), rounds, faults, num_nodes=0 if options.quick else 2)
    header = ("fault", "tried", *OUTCOMES)
    lines = [header, ("---",) * len(header)]
    for fault in faults:
        counts = Counter(result["outcome"] for result in results if result["fault"] == fault)
        lines.append((fault, *map(str, (counts.total(), *(counts[name] for name in OUTCOMES)))))
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "cluster.md").write_text(text)
    return int(any(result["outcome"] != SURVIVED for result in results))


if __name__ == "__main__":
    sys.exit(main())

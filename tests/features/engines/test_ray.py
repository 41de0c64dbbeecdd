"""Features on Ray. `make chaos` has the complete faults: tests/chaos/cluster.py."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from showtell.features.config import FeaturesConfig
from showtell.features.engines.local import LocalEngine
from showtell.features.extract import extract
from showtell.features.plan import ShardJob, list_images, plan_shards
from showtell.features.remote_shards import fetch_shards, location_of
from showtell.features.shards import FeatureShard, write_shard
from showtell.pipeline.stage.errors import ConfigError, MismatchError

CHAOS = Path(__file__).parents[2] / "chaos" / "cluster.py"


def config_of(data: Path, weights: Path, **options: object) -> FeaturesConfig:
    options = {"encoder": "resnet18", "weights": str(weights), **options}
    return FeaturesConfig(data=data, dataset="scenes", **options)


def test_ray_that_cannot_be_imported_is_one_line(scenes, random_weights, showtell, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "showtell.features.engines.ray", raising=False)
    monkeypatch.delitem(sys.modules, "showtell.features.engines.ray_cluster", raising=False)
    words = ("--dataset", "scenes", "--data", scenes, "--encoder", "resnet18")
    status, output = showtell("features", *words, "--weights", random_weights, "--engine", "ray")
    assert status == 1
    assert "--engine ray needs the library Ray, which cannot be imported" in output
    assert "Run pip install 'showtell[ray]'" in output


def test_address_needs_the_engine(tmp_path):
    with pytest.raises(ConfigError, match=r"--address .*--engine ray"):
        FeaturesConfig(data=tmp_path, dataset="scenes", address="auto")


def test_address_without_a_cluster_is_one_line(scenes, random_weights, refused_url):
    pytest.importorskip("ray")
    address = refused_url.removeprefix("http://")
    config = config_of(scenes, random_weights, engine="ray", address=address)
    with pytest.raises(ConfigError, match=r"--address 127.0.0.1:\d+: Connection refused"):
        extract(config)
    with pytest.raises(ConfigError, match="expected auto or HOST:PORT, such as"):
        extract(replace(config, address="ray://host"))


def test_cores_and_gpus_are_used_once():
    pytest.importorskip("ray")
    from showtell.features.engines.ray_cluster import Resources

    assert Resources.choose("auto", [{"CPU": 2.0}]) == Resources(1, 2, 0)
    assert Resources.choose("auto", [{"CPU": 16.0}, {"CPU": 6.0}, {}]) == Resources(5, 4, 0)
    large = {"CPU": 2.0, "memory": 8 << 30}
    assert Resources.choose("auto", [large, {}]) == Resources(2, 1, 0)
    assert Resources.choose("auto", [large, {"CPU": 2.0, "memory": 4 << 30}]) == Resources(2, 2, 0)
    gpus = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}]
    assert Resources.choose("auto", gpus) == Resources(5, 4, 1)
    assert Resources.choose("cpu", gpus) == Resources(22, 4, 0)
    with pytest.raises(ConfigError, match="none of the 1 nodes of the Ray cluster has a GPU"):
        Resources.choose("cuda", [{"CPU": 2.0}])
    with pytest.raises(ConfigError, match="Ray chooses the GPU of each worker"):
        Resources.choose("cuda:1", gpus)
    with pytest.raises(ConfigError, match="no node of the Ray cluster offers a CPU"):
        Resources.choose("auto", [{}])


def test_shard_that_another_run_has_replaced_is_refused(tmp_path):
    pytest.importorskip("ray")
    from showtell.features.engines.ray import RayEngine

    config = FeaturesConfig(data=tmp_path, dataset="scenes", store=str(tmp_path / "store"))
    engine = SimpleNamespace(config=config, network=SimpleNamespace(feature_dim=4))
    shard = FeatureShard(np.arange(2), np.zeros((2, 4), np.float16), (), "of this run")
    write_shard(Path(location_of(config, "part-00000.h5")), shard)
    RayEngine.fetch(engine, [ShardJob("part-00000.h5", 0, 2, "of this run")], tmp_path)
    with pytest.raises(MismatchError, match=r"Another run.*store/scenes/.*/part-00000\.h5\. Run"):
        RayEngine.fetch(engine, [ShardJob("part-00000.h5", 0, 2, "of another")], tmp_path)


def test_worker_keeps_no_shard_that_is_in_the_store(tmp_path, scenes, random_weights):
    pytest.importorskip("ray")
    from showtell.features.engines.ray import Group, ShardActor, Weights

    options = {"image_size": 64, "shard_size": 15, "grid": True}
    config = config_of(scenes, random_weights, store=str(tmp_path / "store"), **options)
    images = list_images(config)
    group = Group(tuple(plan_shards(config, images, "network")), images)
    engine = replace(LocalEngine.load(config), keeps_files=False)
    actor, folder = ShardActor(Weights(config, None), None, tmp_path), tmp_path / "work"
    for _ in range(2):  # computed, then fetched
        most = max(
            len([*folder.glob("part-*.h5")]) for _ in actor.compute_in(folder, engine, group)
        )
        assert most <= 2 < len(group.jobs)
        assert not [*folder.glob("part-*")]
        assert fetch_shards(config, group.jobs, folder) == len(group.jobs)


@pytest.mark.skipif(sys.platform != "linux", reason="it finds the processes of Ray in /proc")
def test_killed_actor_and_driver_are_survived(tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, CHAOS, "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| actor killed, then driver | 1 | 1 | 0 | 0 | 0 |" in done.stdout


def test_worker_that_cannot_start_is_not_taken_for_a_killed_one(monkeypatch) -> None:
    pytest.importorskip("ray")
    from ray.exceptions import RayActorError

    from showtell.features.engines import ray_cluster

    monkeypatch.setattr(ray_cluster, "ray_logs", lambda: "/logs")
    text = "died\n  File x\nModuleNotFoundError: No module named 'showtell'"
    error = RayActorError(None, text, actor_init_failed=True)
    with pytest.raises(ray_cluster.LostWorkersError) as raised, ray_cluster.crashes_reported():
        raise error
    assert "cannot start (ModuleNotFoundError: No module named 'showtell')" in str(raised.value)
    assert "Install the same version" in str(raised.value)

import argparse
import os

import pytest

from showtell.bench import scale_training
from showtell.bench.coco_scale import generate
from showtell.model.training import memory as memory_module


def test_epoch_is_measured_from_windows(tmp_path, monkeypatch) -> None:
    generate(tmp_path, 0.001, num_views=2)
    monkeypatch.setattr(memory_module, "memory_for_features", lambda _: 500_000)
    arguments = argparse.Namespace(data=tmp_path, views=2, cell="gru", steps=3)
    figures = scale_training.measure_epoch(arguments)
    assert figures["window"] == memory_module.MIN_WINDOW
    assert figures["num_windows"] >= 2
    assert figures["features_bytes"] == 118 * 2 * 2048 * 2
    assert 0 < figures["gather_share"] < 1 < figures["captions_per_second"]


@pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="needs a writable cgroup")
def test_cgroup_limits_a_process() -> None:
    try:
        with scale_training.cgroup(50_000_000) as (folder, _):
            processes = folder / "cgroup.procs"
            command = ["python", "-c", "print(len(bytearray(200_000_000)))"]
            with pytest.raises(SystemExit, match="-9"):
                scale_training.run_process(command, lambda: processes.write_text(str(os.getpid())))
    except OSError as error:
        pytest.skip(f"no cgroup: {error}")

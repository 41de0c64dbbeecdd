import sys

from showtell.bench.config import BenchConfig
from showtell.bench.run import measure_stage


def test_missing_library_leaves_the_stage_out(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray", "ray_cluster"):
        monkeypatch.delitem(sys.modules, f"showtell.features.engines.{name}", raising=False)
    reason = measure_stage("ray", BenchConfig(data=trained, dataset="scenes", num_images=1))
    assert "pip install 'showtell[ray]'" in reason

import subprocess
import sys

import pytest
import torch

from showtell.features import device as device_module
from showtell.features.device import choose_device, choose_precision, keep_freed_memory
from showtell.pipeline.stage.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is one GPU of the given compute capability."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return torch.device("cuda")

    return pretend


def test_device_auto_uses_the_gpu_if_there_is_one(gpu, monkeypatch):
    gpu((8, 0))
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU


def test_device_accepts_a_name(gpu):
    gpu((8, 0))
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cpu cuda"])
def test_device_refuses_an_unknown_name(name):
    with pytest.raises(ConfigError, match="--device must be auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_device_refuses_a_missing_one(gpu, monkeypatch):
    gpu((8, 0))
    with pytest.raises(ConfigError, match=r"--device cuda:1 is not .* finds 1 cuda"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"finds 0 cuda devices .*\. Use --device auto"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="finds 0 meta devices"):
        choose_device("meta")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_auto_on_a_cpu_is_bf16_only_if_native(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(device_module, "cpu_multiplies_bf16", lambda: has_bf16)
    assert choose_precision("auto", CPU) is expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_precision_auto_on_a_gpu_is_bf16_from_ampere_on(gpu, capability, expected):
    assert choose_precision("auto", gpu(capability)) is expected


def test_precision_accepts_a_name():
    assert choose_precision("fp32", CPU) is torch.float32
    assert choose_precision("bf16", CPU) is torch.bfloat16
    assert choose_precision("fp16", torch.device("cuda")) is torch.float16


def test_precision_refuses_fp16_on_a_cpu():
    with pytest.raises(ConfigError, match=r"fp16 is for GPUs.*Use --precision auto"):
        choose_precision("fp16", CPU)


def test_precision_refuses_an_unknown_name():
    with pytest.raises(ConfigError, match="must be auto, fp32, bf16, fp16, got 'fp8'"):
        choose_precision("fp8", CPU)


def test_bf16_probe_falls_back_to_cpuinfo(monkeypatch, tmp_path):
    probe = device_module.cpu_multiplies_bf16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(device_module, "Path", lambda path: cpuinfo)
    assert not probe()
    cpuinfo.write_text("flags : fpu avx512f avx512_bf16 lm\n")
    assert probe()
    cpuinfo.write_text("flags : fpu avx512f lm\n")
    assert not probe()


def test_bf16_probe_agrees_with_torch():
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if probe is None or not probe():
        pytest.skip("this CPU has no AVX512-BF16, or torch cannot tell")
    assert device_module.cpu_multiplies_bf16()


COUNT_FAULTS = """
import resource, torch
from showtell.features.device import keep_freed_memory
if {keep} and not keep_freed_memory():
    print(-1)
    raise SystemExit
for _ in range(16):  # glibc has to fill its small bins before it finds the freed block again
    torch.ones(12 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(12 * 2**20)  # 48 MiB, 12,288 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_reused():
    def count_faults(keep):
        code = COUNT_FAULTS.format(keep=keep)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return int(run.stdout)

    kept = count_faults(keep=True)
    if kept < 0:
        pytest.skip("not Linux with glibc")
    assert kept * 10 < count_faults(keep=False)


def test_freed_memory_setting_does_nothing_without_glibc(monkeypatch):
    monkeypatch.setattr(device_module.platform, "system", lambda: "Darwin")
    assert keep_freed_memory() is False
    monkeypatch.setattr(device_module.platform, "system", lambda: "Linux")
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda name: object())  # as musl: no mallopt
    assert keep_freed_memory() is False

"""The hardware: choice of device and precision, CPU capabilities and the CPU's allocator."""

import ctypes
import platform
from pathlib import Path

import torch

from ..pipeline.stage.errors import ConfigError

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
MAX_INT = 2**31 - 1


def choose_device(name: str) -> torch.device:
    """Return the device for `--device`: `auto`, `cpu`, `cuda`, `cuda:1`, ….

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}.") from None
    num_devices = _count_devices(device.type)
    if (device.index or 0) >= num_devices:
        raise ConfigError(
            f"--device {name} is not available: torch {torch.__version__} finds {num_devices} "
            f"{device.type} devices on this machine. Use --device auto."
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype for `--precision`: `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 if the hardware multiplies it natively, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        ConfigError: the name is unknown, or this device does not support the precision.
    """
    if name == "auto":
        return _fastest_precision(device)
    if name not in PRECISIONS:
        raise ConfigError(f"--precision must be auto, {', '.join(PRECISIONS)}, got {name!r}.")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(
            "--precision fp16 is for GPUs; a CPU computes it slower than fp32. "
            "Use --precision auto, bf16 or fp32."
        )
    return PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """Return the `--precision` that stands for a dtype."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory instead of returning it to the system, in this process.

    By default each buffer above 32 MiB is mapped again whenever it is allocated. The page faults
    cost a network on the CPU a third of its speed. All threads share one arena; otherwise each
    decoding thread would keep as much memory as its largest image needed. Without glibc this does
    nothing.

    Returns:
        Whether the setting took effect.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    settings = {
        M_MMAP_MAX: 0,
        M_TRIM_THRESHOLD: MAX_INT,
        M_TOP_PAD: 256 * 2**20,
        M_ARENA_MAX: 1,
    }
    accepted = [mallopt(parameter, value) for parameter, value in settings.items()]
    return all(accepted)


def _count_devices(kind: str) -> int:
    """Return the number of devices of this kind that torch can use."""
    if kind == "cpu":
        return 1
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 0


def _fastest_precision(device: torch.device) -> torch.dtype:
    """Return the dtype that `auto` stands for on this device."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float16
    if device.type == "cpu" and cpu_multiplies_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware: AVX512-BF16, AMX, or ARM's bf16.

    torch's probes are private functions that have been renamed before, so Linux's list of CPU flags
    is read as well.
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(probe() for name in probes if (probe := getattr(torch.cpu, name, None))):
        return True
    try:
        words = Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)

"""Where the network runs and in which precision, and the allocator setting that CPUs need."""

import ctypes
import platform
from pathlib import Path

import torch

from ..pipeline.stage.errors import ConfigError

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MAX_INT = 2**31 - 1


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1`, … into a device that is there.

    Raises:
        ConfigError: no such device, or it is not on this machine.
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
            f"--device {name} is not on this machine: torch {torch.__version__} sees {num_devices} "
            f"{device.type} devices. Use --device auto."
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn `auto`, `fp32`, `bf16`, `fp16` or `int8` into the dtype that a network computes in.

    `auto` is bf16 where the hardware multiplies it natively, else fp16 on a GPU, else fp32; never
    int8, which changes the features by some per cent.

    Raises:
        ConfigError: an unknown name, fp16 on a CPU, or int8 where no hardware multiplies it.
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
    if name == "int8":
        require_int8(device)
    return PRECISIONS[name]


def require_int8(device: torch.device) -> None:
    """Refuse a device that has no products of bytes, or none that torch knows.

    Raises:
        ConfigError: saying why.
    """
    reason = None
    if device.type != "cpu":
        reason = f"is for CPUs, got --device {device}"
    elif not torch.backends.mkldnn.is_available():
        reason = f"needs oneDNN, which torch {torch.__version__} here is built without"
    elif not cpu_multiplies_int8():
        reason = "needs a CPU with AVX512-VNNI, AVX-VNNI or AMX, and none of them is seen here"
    if reason:
        raise ConfigError(f"--precision int8 {reason}. Use --precision bf16 or fp32.")


def precision_name(dtype: torch.dtype) -> str:
    """The name that `choose_precision` takes for a dtype."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory that tensors free, for the rest of this process.

    By default every buffer above 32 MiB is mapped anew and given back when freed, and each use of
    it starts with page faults: they cost a CPU network a third of its speed. Elsewhere than on
    Linux with glibc nothing happens.

    Returns:
        Whether the setting took effect.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: MAX_INT, M_TOP_PAD: 256 * 2**20}
    taken = [mallopt(parameter, value) for parameter, value in settings.items()]
    return all(taken)


def _count_devices(kind: str) -> int:
    """Devices of this kind that torch can use here."""
    if kind == "cpu":
        return 1
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 0


def _fastest_precision(device: torch.device) -> torch.dtype:
    """The dtype that `auto` stands for on this device."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float16
    if device.type == "cpu" and cpu_multiplies_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 products in hardware: AVX512-BF16, AMX, or ARM's bf16."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return _cpu_has(probes, {"avx512_bf16", "amx_bf16", "bf16"})


def cpu_multiplies_int8() -> bool:
    """Whether this CPU has products of bytes in hardware that oneDNN uses."""
    probes = ("_is_vnni_supported", "_is_amx_tile_supported")
    return _cpu_has(probes, {"avx512_vnni", "avx_vnni", "amx_int8"})


def _cpu_has(probes: tuple[str, ...], flags: set[str]) -> bool:
    """Whether one of torch's probes, or a flag that Linux's kernel shows, says yes.

    The probes are private and have been renamed before, so the kernel is asked too.
    """
    if any(probe() for name in probes if (probe := getattr(torch.cpu, name, None))):
        return True
    try:
        words = Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    except OSError:
        return False
    return not flags.isdisjoint(words)

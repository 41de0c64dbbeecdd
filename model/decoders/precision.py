"""Mixed precision of training and decoding: the dtype, autocast and loss scaling."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ...features.device import choose_precision, cpu_multiplies_bf16


class Precision:
    """The precision in which a decoder runs on one device.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`; see `choose_precision`.
        device: device of the decoder.

    Attributes:
        device: device of the decoder.
        dtype: torch.bfloat16, torch.float16 or torch.float32, used by autocast; weights stay
            float32. On a CPU without bf16 instructions it is always float32: there bf16 is slow,
            and an LSTM fails.
        scaler: scales the loss under fp16, because gradients would underflow; otherwise disabled.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.dtype = choose_precision(name, device)
        if device.type == "cpu" and not cpu_multiplies_bf16():
            self.dtype = torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for forward passes; it does nothing under fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

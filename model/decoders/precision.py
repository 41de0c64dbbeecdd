"""Mixed precision, chosen once per run: bf16 where it is fast, else fp16, else fp32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ...features.device import choose_precision, cpu_multiplies_bf16


class Precision:
    """The arithmetic of training or decoding on one device.

    Attributes:
        device: where the tensors are.
        dtype: torch.bfloat16, torch.float16 or torch.float32; weights stay float32. On a CPU
            without bf16 instructions it is float32: bf16 is slow there, and an LSTM fails.
        scaler: scales the loss under fp16, whose gradients would underflow; otherwise disabled.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.dtype = choose_precision(name, device)
        if device.type == "cpu" and not cpu_multiplies_bf16():
            self.dtype = torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

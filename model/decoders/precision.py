"""Mixed precision, chosen once: bf16 where it is fast, else fp16 with a GradScaler, else fp32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ...features.device import choose_precision, cpu_multiplies_bf16


class Precision:
    """How the arithmetic of a training or decoding step is done on one device.

    Attributes:
        device: where the tensors live.
        dtype: torch.bfloat16, torch.float16 or torch.float32; the weights stay float32. On a CPU
            that has no bf16, where it would be slow and an LSTM fail, float32 stands in for it.
        scaler: scales the loss under fp16, whose gradients would underflow; else does nothing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.dtype = choose_precision(name, device)
        if device.type == "cpu" and not cpu_multiplies_bf16():
            self.dtype = torch.float32
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """The context for forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

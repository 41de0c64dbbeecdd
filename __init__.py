"""showtell: image captioning on features that are computed once.

`showtell.load(run).caption([...])` captions photographs; the stages are on the command line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serving.captioner import Captioner, load

__all__ = ["Captioner", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded at first use: `showtell --help` must not wait for torch.
    if name in {"Captioner", "load"}:
        from .serving import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

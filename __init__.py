"""Image captioning on cached features, after Show and Tell (Vinyals et al. 2015).

`showtell.load(run).caption([...])` captions images. The command line, `showtell`, runs the stages.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serving.captioner import Captioner, load

__all__ = ["Captioner", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `showtell --help` does not wait for torch.
    if name in {"Captioner", "load"}:
        from .serving import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

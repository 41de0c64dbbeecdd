"""Image captioning on cached features, after Show and Tell (Vinyals et al. 2015).

`showtell.load(run).caption([...])` captions images. The command line, `showtell`, runs the stages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features.store import FeatureStore
    from .pipeline.text.vocab import Vocab
    from .serving.captioner import Captioner
    from .serving.load import load
    from .serving.results import Caption, Token

__all__ = ["Caption", "Captioner", "FeatureStore", "Token", "Vocab", "__version__", "load"]

__version__ = "0.1.0"


# Imported at first use, so that `showtell --help` does not wait for torch.
_MODULES = {
    "Caption": ".serving.results",
    "Captioner": ".serving.captioner",
    "FeatureStore": ".features.store",
    "Token": ".serving.results",
    "Vocab": ".pipeline.text.vocab",
    "load": ".serving.load",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

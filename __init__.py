"""Image captioning on cached features, after Show and Tell (Vinyals et al. 2015).

`showtell.load(run).caption([...])` captions images; `showtell.score(candidates, references)` scores
captions. The command line, `showtell`, runs the stages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features.store import FeatureStore
    from .features.torch_datasets import CaptionDataset, ReferenceDataset
    from .model.metrics.caption_scorer import CaptionScorer
    from .model.score import Scores, score
    from .pipeline.text.vocab import BOS, EOS, PAD, UNK, Vocab
    from .serving.captioner import Captioner
    from .serving.load import load
    from .serving.results import Caption, Token

__version__ = "0.1.0"


# Imported at first use, so that `showtell --help` does not wait for torch.
_MODULES = {
    "BOS": ".pipeline.text.vocab",
    "EOS": ".pipeline.text.vocab",
    "PAD": ".pipeline.text.vocab",
    "UNK": ".pipeline.text.vocab",
    "Caption": ".serving.results",
    "CaptionDataset": ".features.torch_datasets",
    "CaptionScorer": ".model.metrics.caption_scorer",
    "Captioner": ".serving.captioner",
    "FeatureStore": ".features.store",
    "ReferenceDataset": ".features.torch_datasets",
    "Scores": ".model.score",
    "Token": ".serving.results",
    "Vocab": ".pipeline.text.vocab",
    "load": ".serving.load",
    "score": ".model.score",
}

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "UNK",
    "Caption",
    "CaptionDataset",
    "CaptionScorer",
    "Captioner",
    "FeatureStore",
    "ReferenceDataset",
    "Scores",
    "Token",
    "Vocab",
    "__version__",
    "load",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The JSON that the API answers with."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from ..results import Caption
from .limits import RequestError

DECIMALS = 5  # of attention weights


class ErrorJson(BaseModel):
    """Why a request or an image was refused."""

    code: str = Field(description="Short name of the reason, for programs.")
    message: str = Field(description="The reason, for people.")


class TokenJson(BaseModel):
    """A word, or piece of a word, of a caption."""

    text: str = Field(description="Empty for the end of the caption.")
    log_prob: float = Field(description="Log-probability given the words before it, in nats.")
    attention: list[float] | None = Field(
        default=None, description="Weights of the grid cells, row by row from the top left."
    )


class CaptionJson(BaseModel):
    """A caption of an image."""

    caption: str
    log_prob: float = Field(description="Of the whole caption, in nats.")
    score: float = Field(description="What the captions of an image are ranked by.")
    tokens: list[TokenJson] | None = Field(default=None, description="With details.")

    @classmethod
    def of(cls, caption: Caption) -> "CaptionJson":
        """Return a caption as JSON."""
        tokens = [
            TokenJson(
                text=token.text,
                log_prob=token.log_prob,
                attention=None
                if token.attention is None
                else token.attention.astype(float).round(DECIMALS).tolist(),
            )
            for token in caption.tokens
        ]
        return cls(
            caption=caption.text,
            log_prob=caption.log_prob,
            score=caption.score,
            tokens=tokens or None,
        )


class ImageJson(BaseModel):
    """The result of an image: a caption, or an error."""

    caption: str | None = Field(default=None, description="The best caption.")
    log_prob: float | None = Field(default=None, description="Its log-probability, in nats.")
    captions: list[CaptionJson] | None = Field(
        default=None,
        description="All captions, best first; with n_best above 1, or with details.",
    )
    error: ErrorJson | None = Field(default=None, description="Why this image has no caption.")


class ResultsJson(BaseModel):
    """The results of a request: one per image, in the order of the request.

    The status is 200 if at least one image has a caption. Otherwise `error` repeats the first
    image's error, and the status belongs to it.
    """

    results: list[ImageJson]
    error: ErrorJson | None = None


class ErrorResponseJson(BaseModel):
    """The answer to a request that is refused as a whole."""

    error: ErrorJson


def to_json(
    results: Sequence[list[Caption] | RequestError], lists_captions: bool
) -> tuple[int, ResultsJson]:
    """Return the status and the JSON of the answer to a request.

    Args:
        results: of each image, its captions, best first, or why it has none.
        lists_captions: whether to add the field `captions`.
    """
    images = [
        ImageJson(error=ErrorJson(**result.as_json()))
        if isinstance(result, RequestError)
        else ImageJson(
            caption=result[0].text,
            log_prob=result[0].log_prob,
            captions=[CaptionJson.of(caption) for caption in result] if lists_captions else None,
        )
        for result in results
    ]
    errors = [result for result in results if isinstance(result, RequestError)]
    if len(errors) < len(results):
        return 200, ResultsJson(results=images)
    return errors[0].status, ResultsJson(results=images, error=images[0].error)

"""Matrix products of a decoder without attention: the least work of training and of decoding.

Letters in shapes: B captions, R rows of a decoding step.
"""

from ..model.decoders.config import DecoderConfig
from .limits import Shape

GATES = {"gru": 3, "lstm": 4, "rnn": 1}


def training_products(config: DecoderConfig, num_images: int, lengths: list[int]) -> list[Shape]:
    """Return the matrix products of one training step, forward and backward.

    Args:
        config: of the decoder.
        num_images: number of images in the batch.
        lengths: (B,) tokens of each caption, BOS included.
    """
    embed_size, hidden_size = config.embed_size, config.hidden_size
    width = GATES[config.cell] * hidden_size
    num_tokens = sum(lengths)
    active_rows = [sum(length > step for length in lengths) for step in range(max(lengths))]
    # No gradient is needed for the features and the initial state.
    image = [(num_images, config.feature_dim, embed_size), (num_images, hidden_size, width)]
    all_steps = [
        (num_images + num_tokens, embed_size, width),
        (num_tokens, embed_size, config.vocab_size),
    ]
    each_step = [(rows, hidden_size, width) for rows in active_rows]
    # The gradient of the recurrent matrix is one product over all steps.
    recurrent = [(num_tokens, hidden_size, width)]
    weight_gradients = [
        (inner, rows, columns) for rows, inner, columns in image + all_steps + recurrent
    ]
    input_gradients = [(rows, columns, inner) for rows, inner, columns in all_steps + each_step]
    return image + all_steps + each_step + weight_gradients + input_gradients


def decoding_products(
    config: DecoderConfig, num_rows: int, num_words: int, num_states: int
) -> list[Shape]:
    """Return the matrix products of one decoding step.

    Args:
        config: of the decoder.
        num_rows: R, the beams of all images.
        num_words: number of distinct input words of these rows.
        num_states: number of distinct states of these rows.
    """
    width = GATES[config.cell] * config.hidden_size
    return [
        (num_words, config.embed_size, width),
        (num_states, config.hidden_size, width),
        (num_rows, config.embed_size, config.vocab_size),
    ]

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from showtell.bench.decoder_products import decoding_products, training_products
from showtell.bench.limits import count_flops
from showtell.model.config import TrainConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.kernels import recurrence_backward
from showtell.model.kernels.padding import ALIGNMENT
from showtell.model.training import loss as objective
from showtell.model.training.batches import CaptionBatches
from showtell.model.training.data import decoder_config, load_training_data
from showtell.model.training.loss import caption_loss


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_training_products_match_the_flops_that_torch_counts(
    scenes, cell: str, monkeypatch
) -> None:
    for module in (recurrence_backward, objective):  # count no rows of padding
        monkeypatch.setattr(module, "round_rows", lambda count: count)
    config = TrainConfig(data=scenes, dataset="scenes", cell=cell, hidden_size=24, embed_size=16)
    data = load_training_data(config)
    decoder = create_decoder(decoder_config(config, data))
    batches = CaptionBatches(data.store, data.captions, 32, torch.device("cpu"))
    batch = batches.gather(batches.plan_epoch(0)[0])
    with FlopCounterMode(display=False) as counter:
        caption_loss(decoder, batch).backward()
    shapes = training_products(decoder.config, len(batch.image_rows), batch.lengths.tolist())
    num_words, vocab_size = len(batch.nonpad), len(data.vocab)
    # The default sizes are equal and need no projection from cell to words; these do.
    counted = counter.get_total_flops() - 3 * 2 * num_words * 24 * 16
    # torch does not count the product that is added in place to the gradient of the words.
    counted += 2 * num_words * 16 * vocab_size
    # The loss rounds the vocabulary up in the two products that are counted.
    counted -= 2 * 2 * num_words * 16 * (-vocab_size % ALIGNMENT)
    assert counted == count_flops(shapes)


def test_decoding_products_match_the_flops_that_torch_counts(random_decoder) -> None:
    decoder = random_decoder().eval()
    state = decoder.init_state(torch.randn(3, decoder.config.feature_dim))
    state = state.select(torch.arange(3), torch.zeros(3, 2).long())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder.step(torch.tensor([7, 9, 7, 7, 9, 9]), state)
    shapes = decoding_products(decoder.config, 6, num_words=2, num_states=3)
    assert counter.get_total_flops() == count_flops(shapes)

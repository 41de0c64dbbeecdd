"""Rounded row counts, and the kernel compilations they save."""

import os
import subprocess
import sys

import pytest
import torch

from showtell.features.device import cpu_multiplies_bf16
from showtell.model.kernels.padding import pad_rows, round_rows, round_up, unfinished_rows


def test_round_rows_returns_few_numbers():
    counts = range(100_000)
    rounded = [round_rows(count) for count in counts]
    assert all(0 <= more - count < max(16, count / 8 + 1) for count, more in enumerate(rounded))
    assert rounded == sorted(rounded)
    assert [round_rows(count) for count in rounded] == rounded
    assert all(count % 16 == 0 for count in rounded)
    # 8 in each doubling from 128 to 131,072, and 9 below it.
    assert len(set(rounded)) <= 9 + 10 * 8


@pytest.mark.parametrize("size, expected", [(0, 0), (1, 16), (16, 16), (17, 32), (2543, 2544)])
def test_round_up_returns_multiples_of_sixteen(size, expected):
    assert round_up(size) == expected


def test_pad_rows_appends_rows():
    values = torch.ones(3, 2)
    assert pad_rows(values, 5, -1.0).tolist() == [[1, 1]] * 3 + [[-1, -1]] * 2
    assert pad_rows(values, 3) is values
    assert pad_rows(torch.ones(1, dtype=torch.int64), 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    "finished, multiple, expected",
    [
        ("....", 4, [0, 1, 2, 3]),
        ("x.x.", 2, [1, 3]),
        ("x.xx.x.x", 4, [0, 1, 4, 6]),  # filled up with the first finished ones
        ("xx.", 4, [0, 1, 2]),
        ("xxxxx", 4, []),
        ("", 4, []),
    ],
)
def test_unfinished_rows_come_in_multiples(finished, multiple, expected):
    rows = torch.tensor([letter == "x" for letter in finished], dtype=torch.bool)
    assert unfinished_rows(rows, multiple).tolist() == expected


# Train on batches with different numbers of tokens; print a line between the first and last steps.
# Each decoder has a process of its own, with a cache of its own; all are forked after the imports.
TRAIN = """
import ctypes
import os
import torch
from showtell.model.training.batches import CaptionBatch
from showtell.model.decoders.registry import create_decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.training.loss import caption_loss
for options in {decoders}:
    if os.fork() == 0:
        break
    if os.wait()[1] != 0:
        raise SystemExit("a decoder failed")
    print("NEXT DECODER", flush=True)
else:
    raise SystemExit(0)
torch.manual_seed(0)
decoder = create_decoder(DecoderConfig(feature_dim=8, vocab_size=40, embed_size=16, **options))
for step in range(60):
    if step == 40:
        ctypes.CDLL(None).fflush(None)
        print("LAST STEPS", flush=True)
    lengths = torch.randint(2, 30, (100,)).sort(descending=True).values
    tokens = torch.randint(4, 40, (100, int(lengths[0])))
    nonpad = (torch.arange(int(lengths[0])) < lengths[:, None]).flatten().nonzero()[:, 0]
    features = torch.randn(20, 3, 8) if decoder.uses_grid else torch.randn(20, 8)
    image_index = torch.arange(20).repeat(5)
    batch = CaptionBatch(features, torch.arange(20), image_index, tokens, tokens, lengths, nonpad)
    with torch.autocast("cpu", torch.bfloat16):
        caption_loss(decoder, batch).backward()
ctypes.CDLL(None).fflush(None)
"""
DECODERS = [
    {"cell": "gru", "hidden_size": 16},
    {"cell": "lstm", "hidden_size": 24, "num_layers": 2},
    {"cell": "gru", "hidden_size": 16, "attention": "soft"},
    {"cell": "gru", "hidden_size": 16, "attention": "adaptive"},
    {"cell": "transformer", "hidden_size": 16},
]


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="products are not oneDNN's here")
def test_training_soon_compiles_no_more_kernels():
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_create"}
    command = [sys.executable, "-c", TRAIN.format(decoders=DECODERS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *outputs, rest = done.stdout.split("NEXT DECODER")
    assert len(outputs) == len(DECODERS) and not rest.strip()
    for options, output in zip(DECODERS, outputs, strict=True):
        before, after = output.split("LAST STEPS")
        assert "create:cache_miss" in before, options
        assert after.count("create:cache_miss") <= 40, options  # two a step

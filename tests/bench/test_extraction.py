import numpy as np
import torch

from showtell.bench import extraction
from showtell.features.plan import ImageList


def test_network_rate_counts_the_images_of_the_timed_passes(monkeypatch) -> None:
    class Clock:
        ticks = iter(range(100))
        seconds = property(lambda self: next(self.ticks))

    class Network:
        num_images = 0

        def __call__(self, pixels):
            self.num_images += len(pixels)
            return pixels

    monkeypatch.setattr(extraction, "Stopwatch", Clock)
    network = Network()
    rate = extraction.network_rate(network, torch.zeros(4, 3, 6, 6, dtype=torch.uint8), 5)
    assert network.num_images == 4 * (1 + 5)  # one pass to warm up
    assert rate == 4 * 5 / 6


def test_repeated_images_start_again_with_new_ids() -> None:
    images = ImageList(None, "here", "", np.array([7, 9]), ["a.jpg", "b.jpg"], ["1", "2"])
    repeated = extraction.repeat_images(images, 5)
    assert repeated.image_ids.tolist() == [0, 1, 2, 3, 4]
    assert repeated.file_names == ["a.jpg", "b.jpg", "a.jpg", "b.jpg", "a.jpg"]
    assert repeated.stamps == ["1", "2", "1", "2", "1"]

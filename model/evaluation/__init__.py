"""The parts of `showtell eval`: which runs, images and metrics, and the decoding of a split."""

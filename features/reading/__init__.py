"""Image files to pixel batches: decoding, transforms and batching."""

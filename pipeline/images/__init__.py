"""Image files of a dataset: in folders, in archives, or behind URLs."""

"""Building blocks of every stage: options, manifests, files, errors and console output."""

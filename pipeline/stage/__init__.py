"""What every stage is built from: options, manifests, atomic files, errors and console output."""

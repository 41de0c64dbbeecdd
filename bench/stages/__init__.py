"""One file per stage, named as on the command line; each has `measure(config) -> Measurement`."""

"""Parts of `showtell score`: options, pairs of candidates and references, tables of results."""

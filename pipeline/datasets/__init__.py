"""One module per caption source, and the registry that picks one."""

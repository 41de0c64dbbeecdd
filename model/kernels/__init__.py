"""Drop-in replacements for torch operations that are faster on a CPU."""

"""Benchmarks: the throughput of every stage beside a limit of the hardware.

`run.py` measures, `stages/` has one file per stage, `limits.py` measures the hardware.
"""

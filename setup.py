"""Find the packages: the repository root is the package `showtell`, its folders are subpackages.

Everything else about the project is in pyproject.toml. This file exists because setuptools cannot
express "every package below this folder, under another name" there.
"""

from setuptools import find_packages, setup

FOLDERS = ("pipeline", "features", "model", "serving", "bench")

setup(
    packages=["showtell"]
    + [
        f"showtell.{name}"
        for name in find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
    ]
)

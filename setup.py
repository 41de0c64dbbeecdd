"""List the packages: the repository root is the package `showtell`, its folders are subpackages.

Everything else about the project is in pyproject.toml. This file exists because setuptools cannot
express "every package below this folder, under another name" there.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("pipeline", "features", "model", "serving", "bench")
subpackages = find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])


class BuildModules(build_py):
    """Build the modules of each package, except this file, which lies beside the root's modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return (package, module, path) for every module of a package."""
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if found[:2] != ("showtell", "setup")]


setup(
    packages=["showtell", *(f"showtell.{name}" for name in subpackages)],
    cmdclass={"build_py": BuildModules},
)

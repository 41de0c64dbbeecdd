"""`python -m showtell`, the same as `showtell`."""

from .cli import main

if __name__ == "__main__":
    main()

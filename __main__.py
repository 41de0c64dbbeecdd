"""`python -m showtell`, the same as `showtell`."""

from .pipeline.stage.signals import run_stoppable


def main() -> None:
    """Run the command line. Signals are handled from the first import on."""
    run_stoppable(_run)


def _run() -> int:
    from .cli import run

    return run()


if __name__ == "__main__":
    main()

"""Stop on SIGINT (Ctrl-C) or SIGTERM, always within two seconds, and print one line.

The signal raises `Stopped` in the main thread, so that `with` blocks clean up. A watchdog thread
ends the process if that takes too long, for example in native code. Training defers signals until
the current step is done and a checkpoint is saved.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

LIMIT_S = 1.5
REPEAT_S = 0.5  # `timeout` repeats its signal at once; a later one is the user's
TORCHRUN_REPEAT_S = 30.0  # torchrun repeats Ctrl-C when it can, and kills its processes after that
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal stops the command. Not an `Exception`, so that nothing handles it as an error.

    Attributes:
        signal: the one that was received.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}. {_state.advice}")


class _State:
    """State shared by the signal handlers, the main thread and the watchdog thread."""

    advice = "Run the same command again: finished work is kept."
    stopped: Stopped | None = None
    is_deferred = False
    is_reported = False
    repeat_s = REPEAT_S


_state = _State()
_programs: "weakref.WeakSet[subprocess.Popen[bytes]]" = weakref.WeakSet()


def run_stoppable(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with the status that it returns, or with 130 or 143 on a signal.

    Signals that are already ignored, as in background jobs, stay ignored.
    """
    _open_standard_streams()
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _stop)
        threading.Thread(target=_watch, args=(reader,), daemon=True).start()
        status = command()
        if _state.stopped:  # its exception was lost, for example in a destructor
            raise _state.stopped
        _state.is_reported = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    except Stopped as stopped:
        _report(stopped)
        status = 128 + stopped.signal
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)
    sys.exit(status)


def _open_standard_streams() -> None:
    """Open streams that the caller has closed; otherwise another file would get their number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise `Stopped` once; further signals must not interrupt the cleanup."""
    if not _state.stopped:
        _state.stopped = Stopped(number)
        sys.unraisablehook = lambda _: None  # an interrupted destructor would print it
        end_children()
        raise _state.stopped


def _watch(reader: int) -> None:
    """Watchdog: end the process if it still runs after a signal, or at a second signal."""
    received = os.read(reader, 1)
    if not received:
        return  # the command has ended
    started = time.monotonic()
    deadline = started + LIMIT_S
    while (now := time.monotonic()) < deadline:
        if _state.is_deferred:
            deadline = now + LIMIT_S
        if not select.select([reader], [], [], 0.05)[0]:
            continue
        if not os.read(reader, 1):  # the command has ended; the process may still hang
            time.sleep(deadline - now)
        elif now - started > _state.repeat_s:
            break
    end_children(kill=True)
    _report(Stopped(received[0]))
    os._exit(128 + received[0])


def _report(stopped: Stopped) -> None:
    """Print one line with `os.write`: this may run in another thread or during an import."""
    if not _state.is_reported:
        _state.is_reported = True
        show_cursor = "\x1b[?25h\r" if os.isatty(2) else ""  # a progress bar may have hidden it
        with suppress(OSError):
            os.write(2, f"{show_cursor}error: {stopped}\n".encode())


def expect_repeated_signals() -> None:
    """Do not end the process at a second signal: torchrun repeats those that it receives."""
    _state.repeat_s = TORCHRUN_REPEAT_S


def silence_report() -> None:
    """Print nothing if a signal stops this process, because another process reports it."""
    _state.is_reported = True


@contextmanager
def advice_if_stopped(advice: str) -> Iterator[None]:
    """Print other advice if a signal stops the command during the `with` block.

    Args:
        advice: one or two sentences.
    """
    previous, _state.advice = _state.advice, advice
    try:
        yield
    finally:
        _state.advice = previous


def end_children(*, kill: bool = False) -> None:
    """End all programs and worker processes that this process has started."""
    for program in list(_programs):
        program.kill()
    for worker in multiprocessing.active_children():
        if kill:
            worker.kill()
        else:
            worker.terminate()


def start_program(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a program that is killed if a signal stops this process.

    Args:
        command: the program and its arguments.
        options: further arguments of `Popen`.
    """
    program = subprocess.Popen(command, **options)
    _programs.add(program)
    if _state.stopped:
        program.kill()
    return program


def run_program(
    command: Sequence[str], timeout_s: float, content: bytes = b"", **options: Any
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program as `subprocess.run` does, and kill it if a signal stops this process.

    Args:
        command: the program and its arguments.
        timeout_s: time limit, in seconds.
        content: its stdin.
        options: further arguments of `Popen`.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it exceeded the time limit.
    """
    pipe = subprocess.PIPE
    with start_program(command, stdin=pipe, stdout=pipe, stderr=pipe, **options) as program:
        try:
            stdout, stderr = program.communicate(content, timeout=timeout_s)
        except BaseException:
            program.kill()
            raise
    return subprocess.CompletedProcess(list(command), program.returncode, stdout, stderr)


def end_children_on_sigterm() -> None:
    """Make this worker process kill the programs that it runs when its parent ends it."""

    def end(number: int, frame: FrameType | None) -> None:
        end_children(kill=True)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def stop_when_stdin_closes() -> None:
    """Make this process receive SIGTERM when its stdin closes: the process that started it ended.

    The reader of a pipe learns of that even if the writer was killed.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def deferred_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM in a list, for the caller to check when it is convenient.

    Outside the main thread, where signals cannot be handled, the list stays empty.
    """
    received: list[signal.Signals] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if not _state.is_deferred:
            raise Stopped(number)

    try:
        handled = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        previous = {number: signal.signal(number, receive) for number in handled}
    except ValueError:
        previous = {}
    _state.is_deferred = True
    try:
        yield received
    finally:
        _state.is_deferred = False
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def not_deferred(received: Sequence[signal.Signals]) -> Iterator[None]:
    """Inside `deferred_signals`, raise `Stopped` at the first signal during the `with` block."""
    _state.is_deferred = False
    try:
        if received:
            raise Stopped(received[0])
        yield
    finally:
        _state.is_deferred = True


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGINT in processes that are started in the `with` block.

    Ctrl-C reaches all processes of a terminal; a worker process would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM after the `with` block: a library sets its own."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in previous.items():
                signal.signal(number, handler)

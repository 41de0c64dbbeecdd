"""Run showtell's command line in forked processes, with faults in the system calls of its writes.

`faults.c` is loaded before everything else (LD_PRELOAD), so it sees the writes of every library.
Forking after the imports makes a command take a tenth of a second instead of five.
"""

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
KILL, FULL, STOP, LOG, NONE = b"k", b"f", b"s", b"l", b"-"
TIMEOUT_S = 60.0

Patch = Callable[[], None]


def preload() -> None:
    """Run this program again with the library of faults and a temporary folder, and exit."""
    if "showtell_faults" in os.environ.get("LD_PRELOAD", ""):
        return
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    library = folder / "showtell_faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    variables = {
        "LD_PRELOAD": library,
        "OMP_NUM_THREADS": 1,
        "NO_COLOR": 1,
        "CUDA_VISIBLE_DEVICES": "",
        "CHAOS_DIR": folder,
        "SHOWTELL_COCO_URL": "http://127.0.0.1:9",  # nothing is downloaded
    }
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    status = subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    shutil.rmtree(folder)
    sys.exit(status)


@dataclass(frozen=True)
class Result:
    """How a command ended.

    Attributes:
        status: exit status; negative for a signal.
        output: stdout and stderr.
    """

    status: int
    output: str

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def error(self) -> str:
        """The line of the error, or "" if there is none or not exactly one."""
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return lines[0] if len(lines) == 1 else ""

    @property
    def is_one_line(self) -> bool:
        """Whether the command failed with one line, as every error of users should."""
        return self.status > 0 and bool(self.error) and not self.has_traceback


class Command:
    """A command in a forked process."""

    def __init__(
        self,
        arguments: Sequence[str],
        data: Path,
        mode: bytes = NONE,
        at: int = 0,
        log: Path | None = None,
        patch: Patch | None = None,
    ) -> None:
        descriptor, name = tempfile.mkstemp(prefix="output-", dir=data.parent)
        self.path = Path(name)
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            self._run([*arguments, "--data", str(data)], data, mode, at, log, patch)
        os.close(descriptor)

    def _run(self, arguments, data, mode, at, log, patch) -> None:
        from showtell.cli import main

        status = 99
        try:
            if patch is not None:
                patch()
            sys.argv = ["showtell", *arguments]
            target = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600) if log else -1
            faults = ctypes.CDLL(None)
            faults.faults_arm(os.fsencode(data), ctypes.c_char(mode), ctypes.c_long(at), target)
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def wait(self) -> Result:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self.path.open("a").write("\nTraceback (most recent call last): a hang")
            time.sleep(0.002)
        output = self.path.read_text("utf-8", "replace")
        self.path.unlink()
        return Result(os.waitstatus_to_exitcode(status), output)

    def wait_until_stopped(self) -> bool:
        """Wait until the process has stopped itself; return False if it has ended instead."""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        return status is not None and status.si_code == os.CLD_STOPPED

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def run(arguments: Sequence[str], data: Path, **options: object) -> Result:
    """Run `showtell ARGUMENTS` on a data folder to its end."""
    return Command(arguments, data, **options).wait()


def advised_commands(error: str, arguments: Sequence[str]) -> list[list[str]]:
    """Return the commands that an error suggests, in words; the first is the one to try."""
    found = [
        shlex.split(text)
        for text in re.findall(r"[Rr]un '((?:showtell|rm) .+?)'(?=[.,; ]|$)", error)
    ]
    if "Add --resume" in error:
        found.append(["showtell", *arguments, "--resume"])
    return found


def run_and_follow(
    arguments: Sequence[str], data: Path, patch: Patch | None = None, most: int = 4
) -> tuple[Result, list[str]]:
    """Run a command as a patient user: do what each error says, then try the command again.

    Returns:
        The last result, and the commands that errors suggested.
    """
    followed: list[str] = []
    result = run(arguments, data, patch=patch)
    while result.is_one_line and len(followed) < most:
        advised = advised_commands(result.error, arguments)
        if not advised:
            break
        followed.append(shlex.join(advised[0]))
        outcome = follow(advised[0], data, patch)
        result = run(arguments, data, patch=patch) if outcome.status == 0 else outcome
    return result, followed


def follow(words: list[str], data: Path, patch: Patch | None) -> Result:
    """Run a suggested command; `rm` and showtell are joined by `&&`."""
    result = Result(0, "")
    while words and result.status == 0:
        end = words.index("&&") if "&&" in words else len(words)
        first, words = words[:end], words[end + 1 :]
        if first[0] == "rm":
            subprocess.run(first, check=True)
        else:
            arguments = first[1:]
            if "--data" in arguments:
                at = arguments.index("--data")
                assert arguments[at + 1] == str(data), first
                del arguments[at : at + 2]
            result = run(arguments, data, patch=patch)
    return result


def restore(snapshot: Path, data: Path) -> None:
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(snapshot, data, symlinks=True)

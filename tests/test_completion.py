"""A shell completes the options of every command."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steering.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")
DRIVE = """
source "$1"; shift
COMP_WORDS=(steer "$@"); COMP_CWORD=$#
$(complete -p steer | sed 's/.*-F \\([^ ]*\\).*/\\1/') 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    command = [sys.executable, "steer_cli.py", "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    path = tmp_path_factory.mktemp("completion") / "steer.bash"
    path.write_text(done.stdout)
    return path


def completed(script: Path, *words: str) -> set[str]:
    command = [str(BASH), "--norc", "-c", DRIVE, "bash", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent)
    return set(done.stdout.split())


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_the_script_is_valid(script: Path):
    done = subprocess.run([str(BASH), "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--pr"], {"--prior", "--prototype", "--print-completion"}),
        (["--pro"], {"--prototype"}),
        (["-q", "a dog", "--prot"], {"--prototype"}),
        (["--dtype", "b"], {"bfloat16"}),
        (["sear"], {"search"}),
        (["search", "--th"], {"--threshold"}),
        (["search", "--fo"], {"--folder"}),
        (["search", "--pre"], {"--preview"}),
        (["search", "--preview", ""], {"auto", "kitty", "iterm", "sixel", "blocks"}),
        (["search", "--cs"], {"--csv"}),
        (["search", "--query-"], {"--query-image"}),
        (["index", "--wa"], {"--watch"}),
        (["index", "--inter"], {"--interval"}),
        (["index", "--engine", ""], {"local", "ray"}),
        (["cal"], {"calibrate"}),
        (["calibrate", "--dry"], {"--dry-run"}),
        (["evaluate", "rob"], {"robustness"}),
    ],
)
def test_bash_completes(script: Path, words: list[str], expected: set[str]):
    assert completed(script, *words) == expected


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_every_command_completes_its_own_options(script: Path):
    assert set(COMMANDS) <= completed(script, "")
    for command in COMMANDS:
        found = completed(script, command, "--")
        assert "--help" in found
        assert "--query" not in found


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_files_and_folders_are_completed_where_they_are_taken(script: Path):
    (script.parent / "photos").mkdir(exist_ok=True)
    assert completed(script, "--output", "pho") == {"photos"}
    assert completed(script, "index", "pho") == {"photos"}
    assert completed(script, "search", "--folder", "pho") == {"photos"}
    assert "-o default" in script.read_text()  # of the images of a look


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_too(shell: str):
    command = [sys.executable, "steer_cli.py", "--print-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--prototype" in done.stdout if shell == "zsh" else "prototype" in done.stdout
    program = shutil.which(shell)
    if program:
        assert subprocess.run([program, "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_an_unknown_shell_is_refused_and_help_tells_how_to_turn_it_on():
    command = [sys.executable, "steer_cli.py", "--print-completion", "fish"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "'bash', 'zsh', 'tcsh'" in done.stderr or "bash, zsh, tcsh" in done.stderr
    helped = subprocess.run(
        [sys.executable, "steer_cli.py", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert 'eval "$(steer --print-completion bash)"' in helped.stdout

"""Checkout of another commit, run by this environment's Python."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.result_file import ROOT

SCAN, SCAN_SOURCES = "_scan_native*.so", ("setup.py", "uumamba/ops/native")


class CommandFailed(Exception):
    """Failure of a command, with the end of its output."""


@contextmanager
def checkout(commit: str | None, code: Path) -> Iterator[Path]:
    """Provide the files of a commit, or of the working tree.

    ``configs/`` is linked into the package, as in an installation.
    """
    if commit is None:
        for name in run_git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if (ROOT / name).is_file():  # deleted files are also listed
                (code / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, code / name)
    else:
        run_git("worktree", "add", "--detach", str(code), commit)
    try:
        (code / "uumamba" / "configs").symlink_to(code / "configs")
        yield code
    finally:
        if commit is not None:
            run_git("worktree", "remove", "--force", str(code))


def provide_native_scan(codes: Sequence[Path], *, commits: Sequence[str]) -> None:
    """Provide the native selective scan in each checkout.

    The built library is copied if no commit changes its sources; otherwise each checkout builds its own.

    Raises:
        CommandFailed: some checkouts have no library, so that the checkouts would use different kernels.
    """
    built = list((ROOT / "uumamba" / "ops").glob(SCAN))
    diff = ("git", "-C", str(ROOT), "diff", "--quiet")
    is_same = all(subprocess.call([*diff, each, "--", *SCAN_SOURCES]) == 0 for each in commits)
    for code in codes:
        if built and is_same:
            shutil.copy(built[0], code / "uumamba" / "ops")
        else:
            run_python(code, "setup.py", "--quiet", "build_ext", "--inplace")
    if len({any((code / "uumamba").rglob(SCAN)) for code in codes}) > 1:
        raise CommandFailed(
            "native selective scan: got a library in one checkout, expected a library in both. Fix: correct the build."
        )


def check_packages(code: Path) -> None:
    """Raise if Python imports a package from outside the checkout.

    An editable installation may cause this.
    """
    found = run_python(code, "-c", "import uumamba.configs, data_prep; print(uumamba.configs.__path__, data_prep)")
    if found.count(str(code)) != 2:
        raise CommandFailed(f"packages: got {found.strip()}, expected packages in {code}. Fix: unset PYTHONSAFEPATH.")


def run_python(code: Path, *words: object) -> str:
    """Run Python in a checkout on one CPU thread; return its output.

    The checkout's packages come first on the import path.

    Raises:
        CommandFailed: the message ends with the end of the error output.
    """
    command = [sys.executable, *map(str, words)]
    with subprocess.Popen(
        command,
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # also its children, which would continue to write
            raise
    if process.returncode != 0:
        raise CommandFailed(f"{' '.join(command)} ended with {process.returncode}\n{errors[-2000:]}")
    return output


def run_git(*words: str) -> str:
    """Run git in the project and return its output.

    Raises:
        CommandFailed: the message ends with git's own.
    """
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        raise CommandFailed(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()

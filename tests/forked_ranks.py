"""Groups of forked processes that import torch only once.

Scripts use them, never pytest itself.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

from uumamba.runtime.errors import EndedWithAnother, UumambaError
from uumamba.runtime.process_end import end_process
from uumamba.runtime.rank_group import join_group
from uumamba.runtime.ranks import Ranks

Job = Callable[[Path, Ranks], None]
Join = Callable[[], AbstractContextManager[Ranks]]
JOIN: Join = partial(join_group, "cpu", silence_s=4.0)
WITHIN_S = 100.0


def run_groups(folder: Path, jobs: Mapping[str, Job], *, count: int = 2, join: Join = JOIN) -> None:
    """Run each job in a group of ranks, all in parallel.

    ``join`` is the context that each rank's job runs in.

    Each job's folder gets its ranks' output as ``rank_0.out`` and ``rank_0.err``, and ``ends.json`` with the exit code
    and the time of the end of each.
    """
    running: dict[int, tuple[str, int]] = {}
    for (name, job), port in zip(jobs.items(), _free_ports(len(jobs)), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for rank in range(count):
            pid = os.fork()
            if pid == 0:
                _run_rank(folder / name, job, rank=rank, count=count, port=port, join=join)
            running[pid] = (name, rank)
    ends: dict[str, dict[int, tuple[int, float]]] = {name: {} for name in jobs}
    frozen: set[int] = set()
    deadline = time.monotonic() + WITHIN_S
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            frozen.add(pid)
        elif pid:
            name, rank = running.pop(pid)
            ends[name][rank] = (os.waitstatus_to_exitcode(status), time.time())
        is_late = time.monotonic() > deadline
        for each in [pid for pid, (name, _) in running.items() if is_late or (pid in frozen and ends[name])]:
            os.kill(each, signal.SIGKILL)
        time.sleep(0.02)
    for name, found in ends.items():
        (folder / name / "ends.json").write_text(json.dumps([found[rank] for rank in range(count)]), encoding="utf-8")


def read_group(folder: Path) -> tuple[list[int], list[str], str]:
    """Return the exit codes, outputs and joined errors of a job's ranks."""
    codes = [code for code, _ in json.loads((folder / "ends.json").read_text(encoding="utf-8"))]
    out, err = (
        [(folder / f"rank_{rank}.{kind}").read_text(encoding="utf-8") for rank in range(len(codes))]
        for kind in ("out", "err")
    )
    return codes, out, "".join(err)


def _run_rank(folder: Path, job: Job, *, rank: int, count: int, port: int, join: Join) -> None:
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"rank_{rank}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    code = 0
    try:
        with join() as ranks:
            job(folder, ranks)
    except UumambaError as error:
        if not isinstance(error, EndedWithAnother):  # as the command line does
            print(error, file=sys.stderr)
        code = error.exit_code
    except BaseException:  # noqa: BLE001 the test reads it
        traceback.print_exc()
        code = 1
    end_process(code)


def _free_ports(count: int) -> list[int]:
    """Find free ports below 32768, where the kernel takes none for the clients of the other groups."""
    found: list[int] = []
    port = 10_000 + 97 * os.getpid() % 20_000
    while len(found) < count:
        port += 1
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found

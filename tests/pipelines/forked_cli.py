"""The command line in real processes that start at once: forked from this one, which has imported everything already.

Reads one JSON object a line and answers each with one: ``{"arguments": [...], "stderr": PATH, "before": CODE}`` starts
``uumamba`` with these arguments, after some code that prepares the fault, and gives its process id (``"after"`` is code
to run at its end, where only that process sees what there is);
``{"wait": PID, "seconds": S}`` gives its exit code, negative for a signal, or null while it still runs.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from typing import Any

import torch

import uumamba.cli

WHAT_TRAINING_LOADS = (
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "uumamba.config",
    "uumamba.losses",
    "uumamba.pipelines.train",
)
NO_PERMISSION = 77
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000


def mount(folder: str, *options: str) -> None:
    """A tmpfs of this process's own on a folder; the process ends where the system does not permit one."""
    libc, user = ctypes.CDLL(None, use_errno=True), os.getuid()
    if libc.unshare(NEW_MOUNTS | (NEW_USER if user else 0)):
        os._exit(NO_PERMISSION)
    if user:
        with open("/proc/self/uid_map", "w") as stream:
            stream.write(f"0 {user} 1")
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]):
        if subprocess.run(["mount", *command], capture_output=True).returncode:
            os._exit(NO_PERMISSION)


def obey_permissions() -> None:
    """Take from root what lets it write where the permissions say no."""
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~0b10  # the effective CAP_DAC_OVERRIDE
    libc.capset(header, data)


FAULTS = {"mount": mount, "obey_permissions": obey_permissions}


def run(arguments: list[str], stderr: str, before: str = "", after: str = "") -> None:
    """The child's life, which ends with its parent's."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    for number, path in ((0, os.devnull), (1, os.devnull), (2, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (number == 2), 0o600), number)
    code = 1
    try:
        exec(before, dict(FAULTS))
        try:
            uumamba.cli.main(arguments)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        exec(after, dict(FAULTS))
    except BaseException as error:  # noqa: BLE001 nothing may escape into the parent's loop
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a child, None where it runs longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def main() -> None:
    torch.set_num_threads(1)
    for name in WHAT_TRAINING_LOADS:
        import_module(name)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"], request["seconds"])
        elif not (answer := os.fork()):
            run(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

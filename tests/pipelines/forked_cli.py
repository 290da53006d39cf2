"""Server that forks processes of the command line after all imports.

Each line of stdin is a JSON request, each line of stdout its JSON answer.
``{"arguments": [...], "stderr": PATH, "before": CODE, "after": CODE}`` starts ``uumamba`` with these arguments and
answers with its process id. The code before the verb plants the fault; the code after it can read what only that
process sees, such as its mounts. ``{"wait": PID, "seconds": S}`` answers with the exit code, negative for a signal, or
null while the process runs.
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

IMPORTS_OF_TRAINING = (
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "uumamba.config",
    "uumamba.losses",
    "uumamba.pipelines.train",
)
NO_PERMISSION = 77
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000


def mount(folder: str, *options: str) -> None:
    """Mount a tmpfs on a folder, visible to this process only.

    The process ends where the system does not permit a mount.
    """
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
    """Remove root's capability to write against file permissions."""
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~0b10  # the effective CAP_DAC_OVERRIDE
    libc.capset(header, data)


FAULTS = {"mount": mount, "obey_permissions": obey_permissions}


def run(arguments: list[str], stderr: str, before: str = "", after: str = "") -> None:
    """Run the verb in the forked child, which ends with its parent."""
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
    """Return the exit code of a child, None if it runs longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def main() -> None:
    torch.set_num_threads(1)
    for name in IMPORTS_OF_TRAINING:
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

"""The end of a process that trained in a group."""

import atexit
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, after atexit's functions, and without the interpreter's teardown.

    A thread of gloo or autograd may still let go of a tensor that Python knows, and take Python's lock for it. During
    the teardown that aborts the process, with "terminate called without an active exception" and exit code 134 although
    all was done, so that a cluster takes a whole run for a failed one; torch has known it since 2026
    (https://github.com/pytorch/pytorch/issues/190489).

    Args:
        code: what a shell or a cluster sees.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)

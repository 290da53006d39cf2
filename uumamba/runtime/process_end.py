"""Exit of a process of a training group."""

import atexit
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Run atexit functions and exit with ``code``, without the interpreter's teardown.

    A thread of gloo or autograd may still release a tensor that Python knows and take Python's lock for it. During the
    teardown this aborts the process with "terminate called without an active exception" and exit code 134 although all
    work is done, so that a cluster reports a complete run as failed; a known fault of torch since 2026
    (https://github.com/pytorch/pytorch/issues/190489).

    Args:
        code: the exit code for the shell or the cluster.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

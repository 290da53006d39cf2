"""Tests of the exit of a group's process."""

import subprocess
import sys


def test_a_process_ends_with_its_code_after_its_atexit_functions_and_before_any_teardown() -> None:
    script = """if True:
        import atexit, os
        from uumamba.runtime.process_end import end_process
        class Late:
            def __del__(self, abort=os.abort):
                abort()
        late = Late()
        atexit.register(print, "last words")
        print("work")
        end_process(75)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (75, "work\nlast words\n"), done.stderr

"""Tests of the allocator's settings."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """if True:
    import resource, sys
    from uumamba.runtime.allocator import reuse_freed_memory
    reuse_freed_memory() if "reuse" in sys.argv else None
    def fill():
        return [bytes([1]) * (20 * 2**20) for _ in range(4)]
    for _ in range(3):
        fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        fill()
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print("modules", "torch" in sys.modules, "few" if pages < 1000 else "many")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_blocks_are_reused_without_new_pages_of_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, "reuse"], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "modules False few\n"


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    from uumamba.runtime.allocator import reuse_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not reuse_freed_memory()

"""Memory that is freed is kept or given back, as who works wants it."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import pyrtrav.allocator
size = 16_000_000  # a name: constants are multiplied when the code is compiled
getattr(pyrtrav.allocator, sys.argv[1])()
b"x" * size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(habit: str) -> int:
    """Pages that the system hands out while ten blocks of 16 MB come and go."""
    done = subprocess.run([sys.executable, "-c", CODE, habit], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries decide for themselves")
def test_a_training_uses_its_memory_again_and_many_images_give_it_back() -> None:
    one_block = 16_000_000 // 4096
    assert new_pages("keep_freed_memory") < one_block // 10
    assert new_pages("keep_memory_flat") > 5 * one_block

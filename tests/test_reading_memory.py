"""Memory stays flat over many reads of many files: the tile cache, and little else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.memory import ALLOWED_BYTES
from tests.samples import REPOSITORY, SLIDE

CACHE_BYTES = 8 << 20
FILES, REGIONS = 12, 600

CODE = """
import json, sys
from pathlib import Path
from benchmarks.memory import measure
measured = measure([Path(name) for name in sys.argv[2:]], int(sys.argv[1]))
print(json.dumps([measured.growth_bytes, measured.late_growth_bytes, max(s.cache_bytes for s in measured.samples)]))
"""


def test_many_regions_of_many_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.svs" for number in range(FILES)]
    for path in paths:
        shutil.copy(SLIDE, path)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(REGIONS), *map(str, paths)],
        cwd=REPOSITORY,
        env={**os.environ, "PYRTRAV_CACHE_BYTES": str(CACHE_BYTES), "PYRTRAV_THREADS": "2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    growth, late, cached = json.loads(done.stdout)
    assert CACHE_BYTES / 2 < cached <= CACHE_BYTES  # it was in use, and no leak can hide in its filling
    assert growth < CACHE_BYTES + ALLOWED_BYTES
    assert late < 8 << 20

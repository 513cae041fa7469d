"""Worker processes: none is left when the main one is gone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundle_tools import ROOT

from common.processes import in_forks

PROGRAM = """
import os, sys, time
sys.path[:0] = [{root!r}, {scripts!r}]
from common.processes import process_pool

def identity(_):
    time.sleep(0.1)
    return os.getpid()

if __name__ == "__main__":
    with process_pool(2, method={method!r}) as pool:
        print(*set(pool.map(identity, range(8))), flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn", None])
def test_workers_end_with_a_main_process_that_is_killed(tmp_path, method):
    file = tmp_path / "main.py"
    file.write_text(PROGRAM.format(root=str(ROOT), scripts=str(ROOT / "scripts"), method=method))
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True) as process:
        workers = [Path("/proc", number) for number in process.stdout.readline().split()]
        assert [worker.exists() for worker in workers] == [True] * len(workers) != []
        process.kill()
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker.name for worker in workers if worker.exists()]


@pytest.mark.parametrize("workers", [1, 3])
def test_forks_see_what_is_in_memory_and_give_results_in_order(workers):
    names = ["a", "b", "c", "d"]
    found = list(in_forks(lambda index: (names[index], os.getpid()), range(4), workers))
    assert [name for name, _ in found] == names
    assert (os.getpid() in {number for _, number in found}) == (workers == 1)

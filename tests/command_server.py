"""Runs command lines of ``monai.bundle``, one JSON job per line of its input, each in a fork made after the imports.

A fork ends like the command itself: through the exception hook, with the exit code of the interpreter. Only the import
of MONAI is shared. A job may be several processes that work together, each with its own ``environment``: those of
``torchrun``.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import sys
from pathlib import Path

# what commands import besides MONAI, an optimizer the compiler of PyTorch among it; nothing of the repository
for name in (
    *("monai.bundle", "monai.engines", "monai.handlers", "nibabel", "scipy.ndimage", "scipy.spatial", "fire"),
    *("sqlite3", "torch._dynamo", "nilearn.datasets", "matplotlib.backends.backend_agg"),
    *("matplotlib.backends.backend_svg", "matplotlib.patheffects", "contourpy", "PIL.JpegImagePlugin", "jinja2"),
    "skimage.metrics",
):
    importlib.import_module(name)
os.fsync = lambda descriptor: None  # as in conftest.py
inspect.stack()  # fire does the same in every command; here it fills the caches of inspect once
gc.collect()
gc.freeze()  # or each fork looks at, and so copies, all that was imported: more work than a small command has


def run(job: dict, environment: dict[str, str]) -> None:
    """The command itself, in a fork; does not return."""
    os.environ |= environment
    output = os.open(job["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(job["cwd"])
    sys.path[0] = job["cwd"]
    sys.argv[1:] = job["arguments"]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    sys.exit(0)


for line in sys.stdin:
    job = json.loads(line)
    Path(job["output"]).write_bytes(b"")
    children = set()
    for environment in job["environments"]:
        child = os.fork()
        if child == 0:
            run(job, environment)
        children.add(child)
    first_failure = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        code = os.waitstatus_to_exitcode(status)
        first_failure = first_failure or code
        if code:  # as torchrun does
            for other in children:
                os.kill(other, signal.SIGTERM)
    sys.stdout.write(f"{first_failure}\n")
    sys.stdout.flush()

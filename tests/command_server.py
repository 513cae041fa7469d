"""Runs command lines of ``monai.bundle``, one JSON job per line of its input, each in a fork made after the imports.

A fork ends like the command itself: through the exception hook, with the exit code of the interpreter. Only the import
of MONAI is shared.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import runpy
import sys

# what every command imports; nothing of the repository
for name in ("monai.bundle", "monai.engines", "monai.handlers", "nibabel", "scipy.ndimage"):
    importlib.import_module(name)
inspect.stack()  # fire does the same in every command; here it fills the caches of inspect once

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
else:
    sys.exit(0)

output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(output, 1)
os.dup2(output, 2)
os.chdir(job["cwd"])
sys.path[0] = job["cwd"]
sys.argv[1:] = job["arguments"]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

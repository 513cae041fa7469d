"""When to stop drawing: a learning curve of your own scores, and what further labels would add.

Usage, from the root of the repository; docs/annotation.md goes through a round:

    python scripts/learning_curve.py --scores scores.tsv --output_dir curve
    python scripts/learning_curve.py --train unet --datalist_file cases.json --sizes 1,2,4,8 --output_dir curve
    python scripts/learning_curve.py --train unet --datalist_file cases.json --output_dir curve --run true

The first fits a table of scores. The second prints the trainings that give such a table, the third runs them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotation.trainings import learning_curve as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)

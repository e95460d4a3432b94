"""Train what is missing of the study, and write its tables."""

from pathlib import Path

from experiments.studies.command import main
from experiments.studies.default.__main__ import report

if __name__ == "__main__":
    main(Path(__file__).parent, report)

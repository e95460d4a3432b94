"""`python -m autoclip`: the command line."""

from autoclip.cli import main

main()

"""`python -m boxseg`, for environments whose scripts are not on the path."""

from boxseg.cli import main

main()

"""`python -m tvix.cli` is `tvix`."""

from tvix.cli.main import main

main()

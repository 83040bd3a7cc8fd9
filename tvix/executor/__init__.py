"""Remote execution: actions in, results out. Knows no Nix."""

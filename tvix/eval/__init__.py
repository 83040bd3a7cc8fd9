"""The Nix language: source and EvalIO in, values out. Knows no store and no network."""

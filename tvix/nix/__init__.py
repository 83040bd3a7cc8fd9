"""Nix's formats, pure: no I/O, no store, no evaluator."""

"""tvix: a remote execution server and a build farm for Nix, on one content-addressed store."""

__version__ = "0.1.0"

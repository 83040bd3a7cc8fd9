"""Real Bazel (Debian's 4.2.3) against a server: a C++ project of 96 compile actions, and a small workspace."""

"""Real BuildStream 2.8.1 against a server: remote execution, action cache, storage and artifacts by Remote Asset."""

"""Wire definitions: our own .proto files and the stubs generated from them (see generate.py)."""

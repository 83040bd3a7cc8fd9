"""A table of cases for any Remote Execution API server: `python -m conformance.reapi grpc://HOST:PORT`."""

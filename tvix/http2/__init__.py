"""A gRPC server on HTTP/2 written for this project's hot path; see docs/decisions/0005-own-http2-server.md."""

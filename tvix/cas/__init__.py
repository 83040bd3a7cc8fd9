"""The content-addressed store: blobs, records, and the services over them. Knows no Nix."""

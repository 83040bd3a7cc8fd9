"""Assembles the parts into processes: configuration, supervision, HTTP, metrics."""

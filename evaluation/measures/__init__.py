"""Metrics, one family a file; every module here is found by itself. See `xattn.evaluation`."""

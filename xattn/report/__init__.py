"""Results as pages and pictures; knows no model and needs no network."""

from xattn.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]

"""The report of a run: one self-contained HTML page, a table and a summary. No torch here."""

from faceattr_lightning.report.files import write_split_csv, write_summary_json
from faceattr_lightning.report.grid import GridImage, MaskImage
from faceattr_lightning.report.html import History, ReportData, SplitReport, render
from faceattr_lightning.report.latex import attributes_table

__all__ = [
    "GridImage",
    "History",
    "MaskImage",
    "ReportData",
    "SplitReport",
    "attributes_table",
    "render",
    "write_split_csv",
    "write_summary_json",
]

"""The report: results to numbers, numbers to figures and tables, all of it to one page.

>>> from batchwell.results import StudyResult
>>> empty = StudyResult("demo", "Demo", "", settings={}, versions={})
>>> answer(empty)
'This study is not finished, and there is no answer yet.'
>>> missing(empty)
['the minima, and all that is measured from them']
"""

from .study.answer import SummaryTable, answer, summary_table
from .study.page import render, write
from .study.reading import missing
from .study.sections import SECTIONS, Section

__all__ = [
    "SECTIONS",
    "Section",
    "SummaryTable",
    "answer",
    "missing",
    "render",
    "summary_table",
    "write",
]

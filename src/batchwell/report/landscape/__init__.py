"""The report of a landscape: where SGD goes in it, and which schedule of batch sizes pays."""

from .page import page, summary
from .reading import LandscapeResult, MeasuredRun, numbers
from .wording import answer

__all__ = ["LandscapeResult", "MeasuredRun", "answer", "numbers", "page", "summary"]

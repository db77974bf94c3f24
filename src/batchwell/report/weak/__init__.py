"""The report of a weak study: which diffusion is close to SGD, how close, and at what order.

`page`: a `WeakStudy` as a `Document`. `answer`: its plain words alone.
"""

from .answer import answer
from .page import page

__all__ = ["answer", "page"]

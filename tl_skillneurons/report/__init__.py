"""What a run found, as a reader meets it: in the terminal and on a page.

:func:`show` prints it, from the numbers that :func:`numbers` decides on; :func:`write_page` leaves ``report.html``, one
self-contained file with the verdicts, the pictures and the best neurons one by one.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)

"""Pictures of what was measured, beside luck and controls: one function a picture, from a result to a plotly Figure.

Each figure carries, as ``figure.layout.meta``, its ``title``, one sentence on what is ``seen`` and one on what it does
``not_shown``; alone they stand above and below it, on a report's page around it. Colours are Okabe and Ito's, and never
the only sign. Needs plotly: ``pip install "tl_skillneurons[plots]"``.

- Scores: ``plot_scores`` (by layer), ``plot_histogram`` (beside luck), ``plot_positions`` (layer by prompt position),
  ``plot_prompts`` (one prompt against another), ``plot_read_and_drive`` (against attribution), ``plot_agreement``.
- Effects: ``plot_sizes`` (over the size of the set), ``plot_effects`` (one panel, every draw of every control),
  ``plot_steering`` (dose against what was written).
- Attention: ``plot_heads``.
- Prompts: ``plot_tuning``, ``plot_trajectory``, ``plot_checkpoints``.
- Look: ``theme``, light or dark, and ``COLOURS``.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)

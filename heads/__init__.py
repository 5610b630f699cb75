"""Task heads: small networks from encoder features to positions, beams and classes, with their losses and metrics.

Axis letters as in `datamodules`: `B` batch, `D` features, `Q` beams; here also `C` classes and `n` the labelled samples
of a batch. A new head is a file here with one `Head` subclass, and an export line below.
"""

from heads.base import Head, keep_labelled
from heads.beam import Beam
from heads.feedback import Feedback
from heads.joint import Joint
from heads.los import LOS
from heads.positioning import Positioning
from heads.prediction import Prediction

__all__ = ["LOS", "Beam", "Feedback", "Head", "Joint", "Positioning", "Prediction", "keep_labelled"]

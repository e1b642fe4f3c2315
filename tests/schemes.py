"""The texts of all schemes that are registered, and what their tests share with `vitpos check`."""

import vitpos
from vitpos.checks.run import variants

NAMES = vitpos.available()
SUMS = [text for text in ["learned+rope_axial", "sinusoidal_2d+irpe+rope_mixed"] if set(text.split("+")) <= set(NAMES)]
VARIANTS = [text for name in NAMES for text in variants(name)]
TEXTS = NAMES + VARIANTS + SUMS

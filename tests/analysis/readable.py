"""Whether a reader can read a figure: sizes, edges, and no text on another."""

from itertools import combinations

from matplotlib.axis import Axis, Tick
from matplotlib.text import Text


def check(figure):
    """Lays a figure out and looks at each text that is drawn."""
    figure.set_dpi(150)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == 8
    boxes = []
    for text in drawn(figure):
        assert text.get_fontsize() >= 9, text.get_text()
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text.get_text()!r} reaches over the edge"
        boxes.append((text.get_text(), box))
    for (one, a), (other, b) in combinations(boxes, 2):
        # two pixels, a point: boxes are a little wider than what is in them
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) <= 2 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 2
        assert apart, f"{one!r} lies on {other!r}"


def drawn(figure):
    """Finds all texts that are drawn; an axis also keeps labels of ticks that it does not draw."""
    kept = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    axes_on = [axis for axis in figure.findobj(Axis) if axis.axes.axison]
    shown = {label for axis in axes_on for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text not in kept or text in shown]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]

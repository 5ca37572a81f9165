"""Draw a picture with matplotlib, and encode it as PNG, SVG or PDF: the only room that knows the library."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ibscan.errors import UsageError
from ibscan.views.figures.artists import Look, draw_panel, fitted, limit_y
from ibscan.views.figures.legend import Entries, names, signs
from ibscan.views.figures.picture import Picture, Scale
from ibscan.views.figures.style import Style, named_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

__all__ = ["FORMATS", "check_library", "drawn", "encoded"]

# What formats write beside the picture: nothing that differs from day to day.
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_INCH, _POINT = 25.4, 25.4 / 72
# Mean width of a character, and height of a line, over the size of the font.
_CHARACTER, _LINE = 0.48, 1.35
_ABOVE = 5.0


def check_library() -> None:
    """Check that the drawing library is there, before anything is read.

    Raises:
        UsageError: It is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"plot needs matplotlib ({error}); install it with pip install 'ibscan[plot]'.") from None


def drawn(picture: Picture, *, style: str = "print", axes: Axes | Sequence[Axes] | None = None) -> Drawn:
    """Draw a picture.

    Args:
        picture: What is shown.
        style: `print`, one column of a paper, or `screen`.
        axes: Axes to draw on, one a panel, in place of those of a new figure; the legend is then that of the first.

    Returns:
        A figure of matplotlib, which is none of pyplot's and opens no window.

    Raises:
        UsageError: matplotlib is not installed, there is no such style, or there are fewer axes than panels.
    """
    look = Look(named_style(style), picture)
    check_library()
    import matplotlib as mpl

    with mpl.rc_context(look.style.settings()):
        if axes is not None:
            return _on(picture, look, axes)
        return _new(picture, look)


def _on(picture: Picture, look: Look, axes: Axes | Sequence[Axes]) -> Drawn:
    given = list(axes) if isinstance(axes, Sequence | np.ndarray) else [axes]
    if len(given) < len(picture.panels):
        raise UsageError(
            f"axes: {picture.name} has {len(picture.panels)} panels, and {len(given)} axes were given; --variable and "
            "kind choose fewer panels, or give one axes a panel."
        )
    for panel, one in zip(picture.panels, given, strict=False):
        draw_panel(one, panel, look, 40)
        one.set_xlabel(picture.x.label, parse_math=False)
        one.set_ylabel(panel.y.label, parse_math=False)
        limit_y([one], [panel])
    _legend(given[0], [*names(picture, look), *signs(picture, look)], "best", look.style)
    figure: Any = given[0].figure
    if isinstance(picture.colours, Scale):
        _colour_bar(figure, picture, look, given[: len(picture.panels)])
    return figure  # type: ignore[no-any-return]


def _new(picture: Picture, look: Look) -> Drawn:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style, count = look.style, len(picture.panels)
    columns = min(picture.columns or (1 if count <= 3 else 2), count)
    rows = -(-count // columns)
    title = "\n".join(textwrap.fill(text, int(0.92 * _room(style, 1))) for text in (picture.title, *picture.notes))
    above, below = names(picture, look), signs(picture, look)
    lines = title.count("\n") + 2 + _rows(above, style) + _rows(below, style)
    own = style.font * _LINE * _POINT
    height = rows * style.height(columns) + own * (lines + (1 if picture.share_x == "all" else rows)) + _ABOVE
    figure = Figure(figsize=(style.width / _INCH, height / _INCH), layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    shared = "none" if picture.x.names else picture.share_x
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=picture.share_y).ravel()
    for panel, one in zip(picture.panels, grid, strict=False):
        draw_panel(one, panel, look, _room(style, columns, bar=isinstance(picture.colours, Scale)))
    if picture.share_y:
        limit_y(list(grid[:count]), picture.panels)
    else:
        for panel, one in zip(picture.panels, grid, strict=False):
            limit_y([one], [panel])
    _label_axes(picture, grid, columns, int(0.9 * style.height(columns) / (_CHARACTER * style.font * _POINT)))
    if isinstance(picture.colours, Scale):
        _colour_bar(figure, picture, look, list(grid[:count]))
    # The title is that of the upper legend: matplotlib would lay one over the other.
    _legend(figure, above, "outside upper left", style, title)
    _legend(figure, below, "outside lower left", style)
    return figure


def _room(style: Style, columns: int, *, bar: bool = False) -> int:
    """Return how many characters fit over one of so many columns, beside the labels of the axis and a colour bar."""
    beside = (4.0 if columns > 1 else 1.5) * style.font * _POINT + (8.0 * style.font * _POINT if bar else 0.0)
    return int((style.width - beside) / columns / (_CHARACTER * style.font * _POINT))


def _label_axes(picture: Picture, grid: Any, columns: int, room: int) -> None:  # noqa: ANN401 - axes
    """Label axes where their panels end: below the lowest of each column, on the left of what shares a scale.

    So many characters fit beside a panel.
    """
    count = len(picture.panels)
    same = len({panel.y.label for panel in picture.panels}) == 1
    for place, one in enumerate(grid):
        if place >= count:
            one.remove()
            continue
        if place + columns >= count:
            one.tick_params(labelbottom=True)
            if columns < 3 or place % columns == columns // 2:
                one.set_xlabel(picture.x.label, parse_math=False)
        if place % columns == 0 or not same:
            one.set_ylabel(fitted(picture.panels[place].y.label, room), parse_math=False)


_TIGHT: dict[str, Any] = {
    "handlelength": 2.0,
    "columnspacing": 1.0,
    "handletextpad": 0.5,
    "labelspacing": 0.25,
    "borderpad": 0.1,
    "borderaxespad": 0.1,
    "alignment": "left",
}


def _across(entries: Entries, style: Style) -> int:
    """Return how many entries of a legend fit side by side."""
    longest = max((len(label) for _, label in entries), default=1)
    return max(1, min(len(entries), int(style.width / ((_CHARACTER * longest + 3.8) * style.font * _POINT))))


def _rows(entries: Entries, style: Style) -> int:
    return -(-len(entries) // _across(entries, style))


def _legend(where: Any, entries: Entries, loc: str, style: Style, title: str = "") -> None:  # noqa: ANN401 - a figure
    """Add a legend: matplotlib leaves out labels that begin with `_`, and reads `$` as mathematics."""
    if not entries and not title:
        return
    handles, numbers = [handle for handle, _ in entries], [str(k) for k in range(len(entries))]
    across = _across(entries, style)
    made = where.legend(handles, numbers, loc=loc, ncols=across, title=title or None, frameon=False, **_TIGHT)
    made.get_title().set_parse_math(False)
    for text, (_, label) in zip(made.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _colour_bar(figure: Drawn, picture: Picture, look: Look, axes: list[Axes]) -> None:
    scale = picture.colours
    if not isinstance(scale, Scale) or not scale.high > scale.low:  # of a single checkpoint
        return
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(look.norm, look.map), ax=axes, location="right", aspect=45, fraction=0.03, pad=0.02
    )
    bar.set_label(scale.label, parse_math=False)
    bar.outline.set_visible(False)
    bar.minorticks_off()
    ticks = look.bar_ticks()
    if ticks is not None:
        bar.set_ticks(ticks[0], labels=ticks[1])


def encoded(picture: Picture, form: str, *, style: str = "print") -> bytes:
    """Draw a picture and return the bytes of its file, the same bytes every time.

    Args:
        picture: What is shown.
        form: `png`, `svg` or `pdf`.
        style: `print` or `screen`.

    Raises:
        UsageError: As `drawn` does; or there is no such form.
    """
    if form not in FORMATS:
        raise UsageError(f"format {form!r}: expected {', '.join(FORMATS)}.")
    figure, stream = drawn(picture, style=style), io.BytesIO()
    import matplotlib as mpl

    with mpl.rc_context(named_style(style).settings()), warnings.catch_warnings():
        # A name may have letters that the font lacks, which are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(stream, format=form, metadata=FORMATS[form])
    return stream.getvalue()

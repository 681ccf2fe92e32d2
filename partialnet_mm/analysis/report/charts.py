# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Pieces of the report: curves as SVG, tables, images with boxes on them. All text of the user is escaped."""
import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

#: Longer side of a picture in the page, in pixels.
PICTURE_SIDE = 900

Points = tuple[Sequence[float], Sequence[float]]


def curves(lines: Mapping[str, Points], x_label: str, y_label: str, marker: str = '', limits: tuple | None = None,
           log: bool = False) -> str:
    """A chart of lines by name, as an SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 9, 'axes.spines.top': False,
                     'axes.spines.right': False}):
        figure = Figure(figsize=(6.4, 3.4))
        axes = figure.add_axes((0.11, 0.14, 0.87, 0.83))  # computing the layout takes most of the time
        for index, (name, (x, y)) in enumerate(lines.items()):
            # Legends leave out names that start with "_": a blank is before it.
            axes.plot(x, y, marker=marker, markersize=4, linewidth=1.6, color=f'C{index % 10}',
                      linestyle='-' if index < 10 else '--', label=f' {name}')
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        if limits:
            axes.set_xlim(*limits)
            axes.set_ylim(*limits)
        if log:
            axes.set_yscale('log')
        # Names are text, not formulas: a class may be called "$".
        for text in axes.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)
        content = io.StringIO()
        figure.savefig(content, format='svg', metadata=dict(Date=None, Creator=None, Type=None, Format=None))
    return content.getvalue()[content.getvalue().index('<svg'):]


def table(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is text, the others are numbers."""
    head = ''.join(f'<th>{html.escape(str(heading))}</th>' for heading in headings)
    body = ''.join('<tr>' + ''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row) + '</tr>' for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def heat_table(names: Sequence[str], columns: Sequence[str], counts: np.ndarray) -> str:
    """A confusion matrix: counts, shaded by their fraction of the row; the diagonal is green, the rest red."""
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in ('truth \\ predicted', *columns))
    body = ''
    for row, name in enumerate(names):
        total = max(1, counts[row].sum())
        cells = ''
        for column, count in enumerate(counts[row]):
            colour = '22,140,80' if row == column and column < len(columns) - 1 else '205,50,50'
            shown = f'{count:,}' if count else ''
            cells += (f'<td style="background:rgba({colour},{0.75 * count / total:.2f})" '
                      f'title="{count / total:.1%} of {html.escape(name, quote=True)}">{shown}</td>')
        body += f'<tr><td>{html.escape(name)}</td>{cells}</tr>'
    return f'<div class="wide"><table class="heat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def read_picture(path: str) -> tuple[np.ndarray | None, float]:
    """An image for the page and the factor it was resized by; None if it cannot be read."""
    # As mmcv reads it: turned as its EXIF says.
    content = np.fromfile(path, np.uint8) if Path(path).is_file() else np.zeros(0, np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if picture is None:
        return None, 1.
    factor = min(1., PICTURE_SIDE / max(picture.shape[:2]))
    if factor < 1:
        picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return picture, factor


def picture_element(picture: np.ndarray, overlay: str = '') -> str:
    """A picture (H, W, 3) in BGR, with SVG elements in its pixels over it."""
    done, content = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise ValueError('the picture cannot be written as JPEG')
    height, width = picture.shape[:2]
    data = base64.b64encode(content.tobytes()).decode('ascii')
    return (f'<svg class="picture" viewBox="0 0 {width} {height}" style="max-width:{width}px">'
            f'<image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}"/>{overlay}</svg>')


def box_element(box: Sequence[float], colour: str, text: str, dashed: bool = False) -> str:
    """A box (x1, y1, x2, y2) with a text above it, which is inside where there is no room."""
    x1, y1, x2, y2 = box
    dash = ' stroke-dasharray="7 4"' if dashed else ''
    label = ''
    if text:
        y = y1 - 4 if y1 > 16 else y1 + 13
        label = (f'<text x="{x1:.1f}" y="{y:.1f}" fill="{colour}" stroke="#fff" stroke-width="3" paint-order="stroke" '
                 f'font-size="13" font-weight="600">{html.escape(text)}</text>')
    return (f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{max(0, x2 - x1):.1f}" height="{max(0, y2 - y1):.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="2.5"{dash}/>{label}')

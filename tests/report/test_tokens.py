from dataclasses import replace

import numpy as np
from matplotlib.image import imread

from xattn.report.tokens import WIDTH, layout, render_attributions_html, render_attributions_png


def test_the_picture_grows_with_the_methods(planted, tmp_path):
    items = planted(count=1).attributions
    heights = []
    for count in (1, 3):
        render_attributions_png(items[:count], tmp_path / "a.png")
        heights.append(imread(tmp_path / "a.png").shape[0])
    assert heights[0] < heights[1]


def test_the_strongest_token_is_blue_in_the_picture(planted, tmp_path):
    render_attributions_png(planted(count=1).attributions[:1], tmp_path / "a.png")
    pixels = (imread(tmp_path / "a.png")[..., :3] * 255).round().reshape(-1, 3)
    assert (pixels == (33, 102, 172)).all(1).sum() > 500


def test_long_texts_are_broken_into_lines_that_fit(planted):
    placed = layout(planted(count=1, text="wonderful " * 60).attributions[0])
    assert placed[-1].line > 3
    assert all(p.left + p.width < WIDTH for p in placed)


def test_formulas_and_strange_tokens_are_drawn_as_they_are(planted, tmp_path):
    item = planted(count=1, text="costs $5 or $6_x^ \\frac 😀").attributions[0]
    render_attributions_png([replace(item, method="a$b_$")], tmp_path / "a.png")
    assert imread(tmp_path / "a.png").size


def test_the_page_escapes_texts(planted):
    page = render_attributions_html(planted(count=1, text="<script>alert(1)</script>").attributions)
    assert "<script" not in page
    assert np.char.count(page, "integrated_gradients") >= 1

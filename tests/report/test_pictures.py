"""Pictures beside their heat maps: the colours stand where the scores are."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from xattn import render
from xattn.picture import Picture
from xattn.report.tokens import render_attributions_html, render_attributions_png
from xattn.types import PICTURE, Attribution


@pytest.fixture
def item() -> Attribution:
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    boxes = np.array([[x, y, x + 20, y + 20] for y in (0, 20) for x in (0, 20, 40)])
    count = len(boxes) + 1
    return Attribution(
        text="a.png", pair=None,
        tokens=("[added 0]", *(f"{r},{c}" for r in range(2) for c in range(3))),
        offsets=np.zeros((count, 2), dtype=np.int64),
        segments=np.array([-1, *[PICTURE] * 6]), word_ids=np.arange(-1, 6),
        scores=np.array([9, 0, 0, 1, -0.5, 0, 0], dtype=np.float32), method="flow", parameters={},
        target="logit of cat", prediction="cat", probability=0.5,
        picture=Picture(pixels, boxes, "a.png"),
    )  # fmt: skip


def test_a_patch_is_stained_by_its_score(item: Attribution) -> None:
    assert item.picture is not None
    heat = item.picture.heat(item.patches)
    assert tuple(heat[5, 50]) == render.FOR  # depth is among patches: the added token has 9
    assert tuple(heat[25, 5]) == render.rgb(-0.5, 1.0)
    assert tuple(heat[25, 50]) == (255, 255, 255)


def test_what_was_seen_stays_visible_under_the_stain(item: Attribution) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:10] = 255
    picture = Picture(pixels, item.picture.boxes, "a.png")
    heat = picture.heat(item.patches).astype(int)
    assert (heat[5, 50] > heat[15, 50]).all()


def test_words_and_sentences_leave_patches_as_they_are(item: Attribution) -> None:
    for other in (item.words(), item.sentences()):
        assert other.tokens == item.tokens
        assert np.array_equal(other.scores, item.scores)
    assert list(item.pieces()) == []
    assert item.to_dict()["picture"]["boxes"][1] == [20, 0, 40, 20]


def test_the_sheet_shows_the_strongest_patch_in_blue(item: Attribution, tmp_path) -> None:
    render_attributions_png([item, replace(item, method="other")], tmp_path / "a.png")
    pixels = (imread(tmp_path / "a.png")[..., :3] * 255).round().reshape(-1, 3)
    blue = (pixels == render.FOR).all(1).sum()
    side = 1.95 * 200 / 3  # a patch in pixels of the sheet
    assert blue == pytest.approx(2 * side**2, rel=0.05)


def test_the_page_holds_everything_itself(item: Attribution) -> None:
    name = replace(item.picture, name='"><script>')
    page = render_attributions_html([item, replace(item, method="other", picture=name)])
    found: dict[str, list[dict[str, str]]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.setdefault(tag, []).append(dict(attrs))

    Reader().feed(page)
    assert len(found["img"]) == 1
    assert len(found["svg"]) == 2
    assert len(found["rect"]) == 2 * 6
    assert "script" not in found
    sources = [e["src"] for e in found["img"]] + [e["href"] for e in found["image"]]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert found["rect"][2]["fill"] == "#2166ac"
    assert item._repr_html_().count("<svg") == 1

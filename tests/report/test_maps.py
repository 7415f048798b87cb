import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from xattn.report.maps import SCALE, picked, render_maps_html, render_maps_png

WORDS = ("[CLS]", "a", "$5", "film", "[SEP]")


@pytest.mark.parametrize("count", [5, 60])
@pytest.mark.parametrize(
    "chosen", [{}, {"average": True}, {"layers": [1], "heads": [0]}, {"layers": [0]}]
)
def test_pictures_of_all_kinds(attention_maps, tmp_path, chosen, count):
    path = tmp_path / "maps.png"
    tokens = tuple(WORDS[i % len(WORDS)] for i in range(count))
    render_maps_png(attention_maps(*tokens), path, **chosen)
    picture = imread(path)
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02


def test_layers_and_heads_are_picked_and_averaged(attention_maps):
    maps = attention_maps(*WORDS)
    values, names, columns = picked(maps, [1], [0, 2], False)
    np.testing.assert_array_equal(values[0, 1], maps.maps[1, 2])
    assert (names, columns) == (["layer 1"], ["head 0", "head 2"])
    values, _, columns = picked(maps, None, None, True)
    np.testing.assert_allclose(values[:, 0], maps.maps.mean(1))
    assert columns == ["mean of heads"]


def test_the_page_holds_the_maps(attention_maps):
    maps = attention_maps(*WORDS)
    page = render_maps_html(maps)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    rows = np.array([item["rows"] for item in data["maps"]]).reshape(maps.maps.shape)
    np.testing.assert_allclose(rows / SCALE, maps.maps, atol=0.5 / SCALE)
    assert data["tokens"] == list(WORDS)
    assert not re.search(r'(src|href)="', page)


def test_tokens_cannot_end_the_script(attention_maps):
    page = render_maps_html(attention_maps("</script><script>alert(1)</script>", "b"))
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2

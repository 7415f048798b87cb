import pandas as pd
import pytest

from xattn.evaluation.agreement import agreement_by_text
from xattn.report.examples import EACH, chosen, tokens
from xattn.report.series import HUES, by_text, styles


def table(count):
    return pd.DataFrame(
        {
            "label": ["yes"] * count,
            "prediction": ["no"] * 5 + ["yes"] * (count - 5),
            "probability": [0.6, 0.9, 0.8, 0.7, 0.5] + [0.9] * (count - 5),
            "kind": ["irony"] * 8 + ["plain"] * (count - 8),
        }
    )


def test_texts_are_chosen_by_the_stated_rule():
    agreement = pd.DataFrame({"example": range(30), "tau": [n / 30 for n in range(30)]})
    picked = chosen(table(30), agreement)
    assert list(picked)[:EACH] == [1, 2, 3]  # wrong, the surest first
    assert list(picked)[EACH : EACH + 2] == [0, 8]  # a text of each kind, the hardest first
    assert list(picked)[EACH + 2 : -EACH] == [4, 5, 6]  # lowest agreement not shown yet
    assert list(picked)[-EACH:] == [29, 28, 27]
    assert picked[29] == "the methods agree most (τ 0.97)"


def test_agreement_leaves_special_tokens_out(planted):
    texts = by_text(planted(flipped=("rollout",), top={"integrated_gradients": 0, "rollout": 7}))
    assert agreement_by_text(texts)["tau"].unique() == pytest.approx([-1.0])


def test_strips_show_the_text_as_it_was(planted):
    item = planted(count=1).attributions[0]
    shown = tokens(item)
    assert "".join(t.text for t in shown if not t.side.endswith("special")) == item.text
    assert [t.index for t in shown if t.index is not None] == list(range(len(item.tokens)))
    assert [t.side.split()[0] for t in shown if t.index == 1] == ["against"]


def test_styles_tell_many_methods_apart():
    table = styles([f"m{n}" for n in range(3 * HUES)])
    assert len({(s.name, s.dash) for s in table.values()}) == 3 * HUES + 2

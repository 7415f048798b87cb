"""The greedy search finds planted orders and equals its slow definition."""

import numpy as np
import pytest

from xattn.evaluation import METRICS, Scorer, get_operator
from xattn.evaluation.deletion import Deletion, measure
from xattn.evaluation.oracle import Search, run


def searched(model, encoding, operator="delete", label=0):
    chosen = get_operator(operator)
    searches = [Search(encoding, chosen, label, lowest) for lowest in (True, False)]
    return run(Scorer(model), searches)


@pytest.mark.parametrize("operator", ["delete", "mask", "attention-mask"])
def test_short_texts_equal_the_slow_greedy_search(operator, demo, reference):
    texts = ["Dull!", "A warm and funny film.", "Not bad at all."]
    encodings = demo.encode(texts)
    chosen = get_operator(operator)
    searches = [Search(e, chosen, 1, low) for e in encodings for low in (True, False)]
    found = run(Scorer(demo), searches)
    for search, order in zip(searches, found, strict=True):

        def score(gone, search=search):
            row = reference.without(demo, search.encoding, operator, gone)
            return reference.probability(demo, row, 1)

        expected = reference.greedy(score, search.encoding.removable.tolist(), search.lowest_first)
        assert order.tolist() == expected


@pytest.mark.parametrize("n", [1, 4, 10, 11, 25, 60])
def test_additive_worth_is_found_in_blocks_too(n, toy, encoded):
    ids = np.random.default_rng(n).permutation(np.arange(10, 10 + n))
    model = toy(lambda seen: 0.01 + sum(i - 9 for i in seen if i > 9) / (n * (n + 1)))
    encoding = encoded(ids.tolist())
    morf, lerf = searched(model, encoding)
    assert (encoding.row["input_ids"][morf]).tolist() == sorted(ids.tolist(), reverse=True)
    assert (encoding.row["input_ids"][lerf]).tolist() == sorted(ids.tolist())


def test_cost_grows_with_the_length_not_its_square(toy, encoded):
    model = toy(lambda seen: 0.5)
    scorer = Scorer(model)
    run(scorer, [Search(encoded(list(range(10, 210))), get_operator("delete"), 0, True)])
    assert scorer.asked == 20 * sum(range(1, 11))


def test_the_deciding_token_is_first_and_nothing_beats_the_oracle(toy, encoded):
    model = toy(lambda seen: 0.9 if 42 in seen else 0.1)
    encoding = encoded([10, 11, 42, 12, 13, 14])
    perfect = np.array([3, 1, 2, 4, 5, 6])
    morf, lerf = searched(model, encoding)
    assert morf[0] == 3
    assert lerf[-1] == 3
    delete = get_operator("delete")
    orders = [(morf, lerf), (perfect, perfect[::-1]), (perfect[::-1], perfect)]
    deletions = [Deletion(encoding, delete, 0, *pair) for pair in orders]
    best, same, worst = measure(Scorer(model), deletions)
    rng = np.random.default_rng(0)
    others = [rng.permutation(perfect) for _ in range(50)]
    others = measure(Scorer(model), [Deletion(encoding, delete, 0, o, o[::-1]) for o in others])
    for metric in METRICS.values():
        sign = 1 if metric.higher_is_better else -1
        assert metric(same) == pytest.approx(metric(best))
        assert sign * metric(best) > sign * metric(worst)
        assert all(
            sign * metric(worst) - 1e-9 <= sign * metric(o) <= sign * metric(best) + 1e-9
            for o in others
        )

"""The search finds the best orders: all of them tried, planted ones, the slow greedy search."""

import itertools

import numpy as np
import pytest

from xattn.evaluation import Case, Scorer
from xattn.evaluation.case import gone
from xattn.evaluation.measures.deletion import steps
from xattn.model.game import Worths
from xattn.model.search import beam_search, search


def searched(game, beam=1, worths=None):
    worths = Worths(Scorer(game.model)) if worths is None else worths
    plans = [(game, search(len(game), steps(len(game)), o, beam)) for o in ("morf", "lerf")]
    return worths.play(plans)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_short_texts_are_searched_exhaustively(n, toy, encoded, played):
    rng = np.random.default_rng(n)
    table = rng.random(2**n) * 0.98 + 0.01  # no structure at all
    model = toy(lambda seen: table[sum(1 << (i - 10) for i in seen if i >= 10)])
    game = played(model, encoded(list(range(10, 10 + n))))
    worths = Worths(Scorer(model))

    def total(order):
        [found] = worths([(game, gone(np.array(order), np.arange(n + 1)))])
        return found.sum()

    every = [total(order) for order in itertools.permutations(range(n))]
    least, most = searched(game, worths=worths)
    assert total(least) == pytest.approx(min(every), abs=1e-6)
    assert total(most) == pytest.approx(max(every), abs=1e-6)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("n", [11, 20, 25, 60])
def test_additive_worth_is_found_in_blocks_too(n, beam, toy, encoded, played):
    ids = np.random.default_rng(n).permutation(np.arange(10, 10 + n))
    model = toy(lambda seen: 0.01 + sum(i - 9 for i in seen if i > 9) / (n * (n + 1)))
    encoding = encoded(ids.tolist())
    least, most = searched(played(model, encoding), beam)
    for order, expected in ((least, sorted(ids, reverse=True)), (most, sorted(ids))):
        found = ids[order].tolist()
        ends = steps(n)
        for a, b in itertools.pairwise(ends):  # within a block all go at once
            assert set(found[a:b]) == set(list(expected)[a:b])


@pytest.mark.parametrize("operator", ["delete", "mask", "attention-mask"])
def test_a_beam_of_one_is_the_slow_greedy_search(operator, demo, reference, played):
    [encoding] = demo.encode(["A warm and funny film, not bad at all, I would say."])
    assert len(encoding.removable) > 10
    game = played(demo, encoding, operator, 1)
    worths = Worths(Scorer(demo))
    sizes = np.ones(len(game), dtype=int)  # token by token
    for sign, lowest in ((1.0, True), (-1.0, False)):
        plan = beam_search(len(game), sizes, sign, 1, removing=True)
        [found] = worths.play([(game, plan)])

        def score(out):
            row = reference.without(demo, encoding, operator, out)
            return reference.probability(demo, row, 1)

        expected = reference.greedy(score, encoding.removable.tolist(), lowest)
        assert encoding.removable[list(found.moved)].tolist() == expected


def test_a_wider_beam_is_no_worse(demo, played):
    texts = ["It begins slowly, but the last hour is a wonder: warm, funny and well acted."]
    [encoding] = demo.encode(texts)
    game, worths = played(demo, encoding, "delete", 1), Worths(Scorer(demo))
    areas = []
    for beam in (1, 4):
        least, most = searched(game, beam, worths)
        table = [gone(order, steps(len(game))) for order in (least, most)]
        low, high = worths([(game, part) for part in table])
        areas.append(high.sum() - low.sum())
    assert areas[1] >= areas[0] - 1e-9


def test_a_planted_pair_needs_more_than_greed(toy, encoded, played):
    """Two words of which one does for the other: greed from the whole text passes them by."""
    worth = dict.fromkeys([10, 11, 12, *range(15, 25)], 0.02)

    def probability(seen):
        extra = 0.5 if {13, 14} & set(seen) else 0.0
        return 0.1 + extra + sum(worth.get(i, 0.0) for i in seen)

    game = played(toy(probability), encoded(list(range(10, 25))))
    least, _ = searched(game)
    assert set(least[:2].tolist()) == {3, 4}


def test_cost_grows_with_the_length_not_its_square(toy, encoded, played):
    scorer = Scorer(toy(lambda seen: 0.5))
    game = played(scorer.model, encoded(list(range(10, 210))))
    Worths(scorer).play([(game, search(200, steps(200), "morf", 1))])
    assert scorer.asked <= 2 * (20 * sum(range(1, 11)) + 10) + 2


def test_nothing_beats_the_oracle(toy, encoded, played, value):
    model = toy(lambda seen: 0.9 if 42 in seen else 0.1)
    game = played(model, encoded([10, 11, 42, 12, 13, 14]))
    least, most = searched(game)
    assert least[0] == 2
    assert most[-1] == 2
    ranks = np.zeros(6)
    ranks[least] = np.arange(6, 0, -1)
    best = Case(game, ranks)
    others = [Case(game, np.random.default_rng(i).random(6)) for i in range(30)]
    for name, sign in (("comprehensiveness", 1), ("sufficiency", -1), ("abpc", 1),
                       ("deletion", -1), ("insertion", 1), ("flip", -1)):  # fmt: skip
        top = sign * value(best, name)
        assert all(sign * value(other, name) <= top + 1e-9 for other in others)

"""Interventions do what their formulas say, in every family, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xattn.errors import AttentionError, InputError
from xattn.model import (
    AblateHeads,
    Boost,
    Edit,
    Frozen,
    Intervention,
    Mass,
    Model,
    Permuted,
    Scale,
    Site,
    Suppress,
    Uniform,
    ZeroValues,
    mark,
    mean_outputs,
)
from xattn.model.interventions import check, needs
from xattn.model.places import Layout, Places
from xattn.registry import methods
from xattn.testing import TEXTS, state
from xattn.types import Batch

CAUSAL = {"tiny-gpt2", "tiny-llama", "tiny-qwen2"}
WORDS = {0: "heartless", 1: "wonder", 2: "Dull"}


def marked_batch(model: Model, texts: dict[int, str] = WORDS) -> Batch:
    """Texts of different lengths; a word of each is marked ``m``, its first token ``first``."""
    encodings = model.encode([TEXTS[i] for i in texts])
    return model.batch(
        [
            mark(mark(e, "m", words=word), "first", positions=[0])
            for e, word in zip(encodings, texts.values(), strict=True)
        ]
    )


def maps_under(model: Model, batch: Batch, *edits: Edit | Intervention) -> list[Tensor]:
    seen: list[Tensor] = []

    def keep(site: Site, p: Tensor) -> Tensor:
        seen.append(p)
        return p

    with model.edit(*edits, Edit(probabilities=keep)):
        model.logits(batch.inputs)
    return seen


def real_rows(batch: Batch, maps: Tensor) -> Tensor:
    """The rows of tokens that are no padding, ``[row, key]``."""
    return maps.permute(0, 2, 1, 3)[batch.real].flatten(0, 1)


def refused(model: Model, *edits: Edit | Intervention) -> bool:
    """Whether a model that computes attention by itself hides what the edits need, and says so."""
    if model.attach().backend == "interface":
        return False
    try:
        with model.edit(*edits):
            return False
    except AttentionError:
        with pytest.raises(AttentionError, match="cannot take effect in this model"):
            model.edit(*edits).__enter__()
        return True


# -------------------------------------------------------------------- scaling


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_scaling_before_softmax_is_the_closed_form(tiny: Model, factor: float) -> None:
    batch = marked_batch(tiny)
    plain = maps_under(tiny, batch)[0]
    weighted = plain * torch.where(batch.inputs["mark:m"].bool(), factor, 1.0)[:, None, None, :]
    expected = weighted / weighted.sum(-1, keepdim=True)
    got = maps_under(tiny, batch, Scale("m", factor, layers=[0]))[0]
    torch.testing.assert_close(real_rows(batch, got), real_rows(batch, expected))


def test_scaling_after_softmax_keeps_everything_else(tiny: Model) -> None:
    batch = marked_batch(tiny)
    plain = maps_under(tiny, batch)[0]
    weights = torch.where(batch.inputs["mark:m"].bool(), 0.5, 1.0)[:, None, None, :]
    got = maps_under(tiny, batch, Scale("m", 0.5, layers=[0], renormalize=False))[0]
    assert got.equal(plain * weights)


def test_the_factor_one_changes_no_bit(tiny: Model) -> None:
    batch = marked_batch(tiny)
    with tiny.edit(Edit(scores=lambda site, s: s)):
        plain = tiny.logits(batch.inputs)
    for renormalize in (True, False):
        with tiny.edit(Boost("m", 1.0, renormalize=renormalize)):
            assert tiny.logits(batch.inputs).equal(plain)


def test_suppressed_tokens_get_nothing_and_rows_still_sum_to_one(tiny: Model) -> None:
    batch = marked_batch(tiny)
    hit = batch.inputs["mark:m"].bool()[:, None, None, :]
    for maps, plain in zip(
        maps_under(tiny, batch, Suppress("m")), maps_under(tiny, batch), strict=True
    ):
        assert float(real_rows(batch, plain * hit).max()) > 0.01  # there was something to suppress
        rows = real_rows(batch, maps * hit)
        # a decoder's first tokens have nothing else to look at
        alone = (real_rows(batch, plain * ~hit) == 0).all(-1)
        assert float(rows[~alone].abs().max()) == 0
        sums = real_rows(batch, maps).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


def test_a_row_with_nothing_else_to_look_at_stays_as_it_was(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("llama")
    batch = marked_batch(model)
    for maps in maps_under(model, batch, Suppress("first")):
        first = maps[:, :, 0, :]
        assert bool((first[..., 0] == 1).all())  # and not spread over text to come
        assert float(maps[:, :, 1:, 0].abs().max()) == 0


def test_suppressing_everywhere_is_what_the_models_mask_does(
    tiny_of: Callable[..., Model], family: str
) -> None:
    """Hidden by its mask, a key is out of sight in every layer, for every query but itself."""
    model = tiny_of(family)
    encoding = mark(model.encode([TEXTS[1]])[0], "m", words="hour")
    hit = encoding.row["mark:m"]
    # A prediction that is read from the hidden token itself cannot be compared, nor are positions
    # that the model counts by its mask.
    assert not hit[0]
    assert not hit[-1]
    hidden = {**encoding.row, "attention_mask": encoding.row["attention_mask"] * (1 - hit)}
    want = model.logits(model.collate([hidden]))
    plain = model.logits(model.collate([encoding.row]))
    with model.edit(Suppress("m")):
        got = model.logits(model.collate([encoding.row]))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
    assert float((got - plain).abs().max()) > 1e-4


def test_scaling_the_others_by_alpha_is_boosting_the_marked(tiny: Model) -> None:
    batch = marked_batch(tiny)
    others = maps_under(tiny, batch, Scale("m", 0.1, others=True, layers=[0]))[0]
    boosted = maps_under(tiny, batch, Boost("m", 10.0, layers=[0]))[0]
    torch.testing.assert_close(real_rows(batch, others), real_rows(batch, boosted))


# ------------------------------------------------------------- where it happens


def test_only_the_chosen_layers_heads_and_queries_change(tiny: Model) -> None:
    batch = marked_batch(tiny)
    plain = maps_under(tiny, batch)
    edit = Scale("first", 4.0, heads={1: [0, -1]}, queries=[2])
    got = maps_under(tiny, batch, edit)
    assert got[0].equal(plain[0])
    changed = ((got[1] - plain[1]).abs() > 1e-6).any(-1)  # [batch, head, query]
    expected = torch.zeros_like(changed)
    # a query that sees nothing but the mark, or nothing of it, keeps its row up to rounding
    hit = batch.inputs["mark:first"].bool()[:, None, None, :]
    between = ((plain[1] * hit) > 0).any(-1) & ((plain[1] * ~hit) > 0).any(-1)
    expected[:, [0, 3], 2] = between[:, [0, 3], 2]
    assert changed.equal(expected)
    assert bool(changed.any())


def test_queries_by_mark_and_by_position_agree(tiny: Model) -> None:
    batch = marked_batch(tiny)
    by_mark = maps_under(tiny, batch, Uniform(queries="first"))
    by_position = maps_under(tiny, batch, Uniform(queries=range(1)))
    for a, b in zip(by_mark, by_position, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("kind", ["scale", "permuted", "values", "uniform"])
def test_edits_do_not_depend_on_who_shares_a_batch(tiny: Model, kind: str) -> None:
    edit = {
        "scale": Scale("m", 0.3, queries="first"),
        "permuted": Permuted(3),
        "values": ZeroValues("m", heads=[1, 2]),
        "uniform": Uniform(layers=[1]),
    }[kind]
    if refused(tiny, edit):
        return
    with tiny.edit(edit):
        together = tiny.logits(marked_batch(tiny).inputs)
        alone = [tiny.logits(marked_batch(tiny, {i: w}).inputs) for i, w in WORDS.items()]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=2e-5)


def test_repeated_and_reordered_rows_carry_their_marks(demo: Model) -> None:
    batch = marked_batch(demo)
    index = torch.tensor([2, 0, 0, 1])
    with demo.edit(Suppress("m")):
        plain = demo.logits(batch.inputs)
        again = demo.logits({name: tensor[index] for name, tensor in batch.inputs.items()})
    torch.testing.assert_close(again, plain[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "llama", "deberta-v2"])
def test_half_precision(tiny_of: Callable[..., Model], name: str, dtype: torch.dtype) -> None:
    model = tiny_of(name)
    model.network.to(dtype)
    batch = marked_batch(model)
    hit = batch.inputs["mark:m"].bool()[:, None, None, :]
    for maps in maps_under(model, batch, Suppress("m")):
        assert bool(maps.isfinite().all())
        assert float((real_rows(batch, maps * hit).max(-1).values == 0).float().mean()) > 0.9
    for edit in (Uniform(), Permuted(), Scale("m", 1e-30), Boost("m", 1e30)):
        with model.edit(edit):
            assert bool(model.logits(batch.inputs).isfinite().all())


def test_heads_found_by_numpy_are_heads(demo: Model) -> None:
    batch = marked_batch(demo)
    found = np.flatnonzero([True, False, True, False])
    edit = Suppress("m", layers=found[:1], heads={int(found[0]): found}.get(0), queries=found)
    with demo.edit(edit):
        got = demo.logits(batch.inputs)
    with demo.edit(Suppress("m", layers=[0], heads=[0, 2], queries=[0, 2])):
        assert demo.logits(batch.inputs).equal(got)


def test_a_reading_is_the_sum_of_the_edited_maps(tiny: Model) -> None:
    batch = marked_batch(tiny)
    reading = Mass("m", layers=[1], queries=range(2))
    [_, maps, _] = maps_under(tiny, batch, Scale("m", 3.0), reading)
    [(_, mass)] = reading.found
    expected = (maps * batch.inputs["mark:m"][:, None, None, :]).sum(-1)
    expected[:, :, 2:] = 0
    torch.testing.assert_close(mass, expected)
    assert float(mass.max()) > 0.01


# ----------------------------------------------------------------- other kinds


def test_uniform_rows_cover_what_may_be_looked_at(tiny: Model) -> None:
    batch = marked_batch(tiny)
    plain = maps_under(tiny, batch)
    uniform = maps_under(tiny, batch, Uniform())
    for before, after in zip(plain, uniform, strict=True):
        rows, old = real_rows(batch, after), real_rows(batch, before)
        assert bool(((rows > 0) >= (old > 0)).all())
        count = (rows > 0).sum(-1, keepdim=True)
        torch.testing.assert_close(rows, (rows > 0) / count)
    keys = batch.real[0].sum() if tiny.name not in CAUSAL else 1
    assert int((uniform[0][0, 0, 0] > 0).sum()) == int(keys)


def test_uniform_after_suppress_spreads_over_the_rest(demo: Model) -> None:
    batch = marked_batch(demo, {0: "heartless"})
    count = batch.inputs["input_ids"].shape[1] - int(batch.inputs["mark:m"].sum())
    maps = maps_under(demo, batch, Suppress("m"), Uniform())[0]
    assert float(maps.max()) == pytest.approx(1 / count, rel=1e-5)
    assert float((maps * batch.inputs["mark:m"][:, None, None, :]).max()) == 0
    # The other way round the map is uniform first: the same here, since both leave out the mark.
    other = maps_under(demo, batch, Uniform(), Suppress("m"))[0]
    torch.testing.assert_close(other, maps)


def test_composition_goes_in_order(demo: Model) -> None:
    batch = marked_batch(demo)
    scaled_last = maps_under(demo, batch, Uniform(), Scale("m", 5.0))[0]
    scaled_first = maps_under(demo, batch, Scale("m", 5.0), Uniform())[0]
    assert not scaled_last.allclose(scaled_first)
    torch.testing.assert_close(scaled_first, maps_under(demo, batch, Uniform())[0])
    with demo.edit(Uniform()):
        nested = maps_under(demo, batch, Scale("m", 5.0))[0]
    assert nested.equal(scaled_last)


def test_permuted_rows_keep_their_numbers(tiny: Model) -> None:
    batch = marked_batch(tiny)
    plain = real_rows(batch, maps_under(tiny, batch)[0])
    got = real_rows(batch, maps_under(tiny, batch, Permuted(layers=[0]))[0])
    # scores are permuted, and softmax sums them in another order: the last bit may differ
    torch.testing.assert_close(got.sort(-1).values, plain.sort(-1).values, atol=1e-6, rtol=1e-5)
    assert not got.allclose(plain)
    assert bool(((got > 0) == (plain > 0)).all())
    again = real_rows(batch, maps_under(tiny, batch, Permuted(layers=[0]))[0])
    assert again.equal(got)
    other = real_rows(batch, maps_under(tiny, batch, Permuted(1, layers=[0]))[0])
    assert not other.allclose(got)


def test_permutations_are_fair() -> None:
    """Each key comes to each place about equally often: 4 keys, 6000 rows, 5 standard errors."""
    site = Site("attention", 0)
    layout = Layout({site: 6})
    scores = torch.arange(4.0).expand(1, 6, 1000, 4)
    places = Places(layout, {})
    places.note(site, scores)
    change = Permuted(11).resolve(places).scores
    assert change is not None
    permuted = change(site, scores)
    counts = torch.stack([(permuted == k).sum((0, 1, 2)) for k in range(4)]) / 6000
    assert float((counts - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 6000) ** 0.5


def test_frozen_maps_replace_the_models_own(tiny: Model) -> None:
    batch, other = marked_batch(tiny), marked_batch(tiny)
    recorded = [m.flip(0).flip(1) for m in maps_under(tiny, other)]
    for got, want in zip(maps_under(tiny, batch, Frozen(recorded)), recorded, strict=True):
        assert got.equal(want)
    own = maps_under(tiny, batch)
    with tiny.edit(Edit(scores=lambda site, s: s)):
        plain = tiny.logits(batch.inputs)
    with tiny.edit(Frozen(own)):
        torch.testing.assert_close(tiny.logits(batch.inputs), plain, atol=1e-5, rtol=1e-5)


def test_frozen_maps_of_one_text_serve_a_batch(demo: Model) -> None:
    [maps] = demo.attention(demo.encode(["A dull film."]))
    batch = demo.batch(demo.encode(["A good film.", "A dull film."]))
    for got, want in zip(maps_under(demo, batch, Frozen(maps.maps)), maps.maps, strict=True):
        torch.testing.assert_close(got, torch.from_numpy(want).expand_as(got))


def test_zero_values_spend_the_attention_that_goes_there(tiny: Model) -> None:
    batch = marked_batch(tiny)
    if refused(tiny, ZeroValues("m")):
        return
    with tiny.edit(ZeroValues("m", heads=[0, 2])):
        zeroed = tiny.logits(batch.inputs)
    with tiny.edit(Scale("m", 0.0, renormalize=False, heads=[0, 2])):
        torch.testing.assert_close(zeroed, tiny.logits(batch.inputs), atol=1e-5, rtol=1e-5)
    assert float((zeroed - tiny.logits(batch.inputs)).abs().max()) > 1e-4


def test_ablating_all_heads_is_no_attention_at_all(tiny: Model) -> None:
    batch = marked_batch(tiny)
    if refused(tiny, AblateHeads()):
        return
    with tiny.edit(AblateHeads(layers=[1])):
        ablated = tiny.logits(batch.inputs)
    with tiny.edit(Frozen([p * 0 for p in maps_under(tiny, batch)[1:2]], layers=[1])):
        assert tiny.logits(batch.inputs).equal(ablated)


def test_mean_ablation_and_scale_are_the_closed_form(tiny: Model) -> None:
    batch = marked_batch(tiny)
    if refused(tiny, AblateHeads()):
        return
    means = mean_outputs(tiny, batch.encodings)
    seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def keep(into: list[Tensor]) -> Edit:
        def note(site: Site, o: Tensor) -> Tensor:
            into.append(o)
            return o

        return Edit(outputs=note)

    edit = AblateHeads(means[:1], 0.25, layers=[0], heads=[1])
    with tiny.edit(keep(seen[False]), edit, keep(seen[True])):
        tiny.logits(batch.inputs)
    before, after = seen[False][0], seen[True][0]
    assert after[:, [0, 2, 3]].equal(before[:, [0, 2, 3]])
    mean = means[0][1]
    torch.testing.assert_close(after[:, 1], mean + 0.25 * (before[:, 1] - mean))
    real = batch.real
    torch.testing.assert_close(
        before.permute(0, 2, 1, 3)[real].mean(0), means[0], atol=1e-5, rtol=1e-4
    )


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: Suppress("m", layers=[3]), r"layer is out of range: got 3, expected 0 to 2"),
        (lambda: Suppress("m", layers=[-4]), "layer is out of range: got -4"),
        (lambda: Suppress("m", heads=[4]), "head in layer 0 is out of range: got 4"),
        (lambda: Suppress("m", heads={2: [0], 7: [0]}), "layer is out of range: got 7"),
        (lambda: Suppress("m", layers=[0], heads={1: [0]}), "layers are named twice"),
        (lambda: Suppress("m", layers=[]), "no layer is chosen"),
        (lambda: Suppress("m", heads={}), "no layer is chosen"),
        (lambda: Suppress("m", heads=[]), "no head is chosen"),
        (lambda: Suppress("m", layers=["0"]), "layer is out of range: got '0'"),
        (lambda: Suppress("m", layers=2), r"layers are given one by one: got 2, expected \[2\]"),
        (lambda: Suppress("m", heads=0), "heads are given one by one: got 0"),
        (lambda: Suppress("m", stack="cross"), "unknown stack.*'cross', expected none"),
        (lambda: Suppress("m", queries=[-1]), "queries are given by a mark or by positions"),
        (lambda: Suppress("m", queries=[]), "queries are given"),
        (lambda: Scale("m", -1.0), "factor of Scale: got -1.0"),
        (lambda: Scale("m", float("nan")), "factor of Scale: got nan"),
        (lambda: Boost("m", 0.5), "factor of Boost.*Scale takes smaller"),
        (lambda: Frozen([]), "got 0 maps, expected 3"),
        (lambda: Frozen([torch.ones(2, 2)] * 3), r"strange shape: got \[2, 2\]"),
        (lambda: Frozen([torch.ones(1, 2, 3, 3)] * 3), "with 4 heads"),
        (lambda: AblateHeads([torch.ones(4, 8)]), "got 1 means, expected 3"),
        (lambda: AblateHeads([torch.ones(3, 8)] * 3), r"expected \[head, dim\] with 4 heads"),
        (lambda: AblateHeads(scale=float("inf")), "scale of AblateHeads"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    tiny_of: Callable[..., Model], edit: Callable[[], Intervention], message: str
) -> None:
    model = _bert(tiny_of)
    passes = model.passes.forward
    with pytest.raises(InputError, match=message), model.edit(edit()):
        pytest.fail("the block must not be entered")
    assert model.passes.forward == passes


_models: dict[str, Model] = {}


def _bert(tiny_of: Callable[..., Model]) -> Model:
    if "bert" not in _models:
        _models["bert"] = tiny_of("bert")
        _models["bert"].layout()
    return _models["bert"]


@pytest.mark.parametrize("edit", [Suppress("n"), ZeroValues("n"), Uniform(queries="n")])
def test_unknown_marks_are_refused_before_the_network_runs(demo: Model, edit: Any) -> None:
    batch = marked_batch(demo)
    demo.attach()  # its verification runs the network
    passes = demo.passes.forward
    with demo.edit(edit):
        with pytest.raises(InputError, match=r"no mark 'n'.*got marks 'first', 'm'"):
            demo.logits(batch.inputs)
        with pytest.raises(InputError, match=r"no mark 'n'.*got no marks; mark the tokens first"):
            demo.logits(demo.batch(demo.encode(["Dull"])).inputs)
    assert demo.passes.forward == passes


def test_frozen_maps_of_another_length_are_refused(demo: Model) -> None:
    [maps] = demo.attention(demo.encode(["A dull film."]))
    batch = marked_batch(demo)
    with demo.edit(Frozen(maps.maps)), pytest.raises(InputError, match="does not fit the texts"):
        demo.logits(batch.inputs)


def test_something_that_is_no_edit(demo: Model) -> None:
    with pytest.raises(InputError, match="not an edit: got str"), demo.edit("suppress"):  # type: ignore[arg-type]
        pytest.fail("the block must not be entered")


def test_an_edit_that_cannot_take_effect_is_refused() -> None:
    layout = Layout({Site("a", 0): 2})
    for edit in (Suppress("m"), Edit(scores=lambda site, s: s), AblateHeads()):
        with pytest.raises(AttentionError, match=r"cannot take effect.*can only be read"):
            check([edit], layout, serves=())
    with pytest.raises(AttentionError, match="outputs cannot be reached"):
        check([AblateHeads()], layout, serves={"scores", "probabilities"})
    check([Suppress("m"), Scale("m", 2, renormalize=False)], layout, {"scores", "probabilities"})


def test_attention_that_is_not_between_the_tokens_is_refused() -> None:
    site = Site("windows", 0)
    inputs = {"input_ids": torch.zeros(2, 6), "mark:m": torch.ones(2, 6)}
    for shape, message in (
        ((2, 1, 6, 9), "got 9 keys, expected 6"),
        ((2, 1, 6, 3), "got 3 keys, expected 6"),
        ((2, 1, 3, 3), "got 3 queries, expected 6"),
        ((3, 1, 6, 6), "got 3 rows"),
    ):
        places = Places(Layout({site: 1}), inputs)
        places.begin(torch.nn.Identity(), (), inputs)
        scores = places.note(site, torch.zeros(shape))
        change = Suppress("m").resolve(places).scores
        assert change is not None
        with pytest.raises(AttentionError, match=message):
            change(site, scores)


def test_images_beside_a_text_have_marks_of_their_own() -> None:
    text, patches = Site("text", 0), Site("patches", 0)
    layout = Layout({patches: 1, text: 1}, {patches: "vision", text: "text"})
    inputs = {
        "input_ids": torch.zeros(1, 3),
        "mark:m": torch.tensor([[0, 1, 0]]),
        "vision_mark:p": torch.tensor([[1, 0, 0, 0]]),
    }
    places = Places(layout, inputs)
    places.begin(torch.nn.Identity(), (), inputs)
    before = {patches: torch.zeros(1, 1, 4, 4), text: torch.zeros(1, 1, 3, 3)}
    for edit, changed, column in ((Suppress("m"), text, 1), (Suppress("p"), patches, 0)):
        change = edit.resolve(places).scores
        assert change is not None
        for site, scores in before.items():
            after = change(site, places.note(site, scores))
            hidden = (after < -1e9).all((0, 1, 2)).nonzero().flatten().tolist()
            assert hidden == ([column] if site == changed else [])


def test_a_site_that_was_not_counted_is_refused() -> None:
    places = Places(Layout({Site("a", 0): 1}), {})
    with pytest.raises(AttentionError, match=r"attention at a#1, which was not there"):
        places.note(Site("a", 1), torch.zeros(1, 1, 2, 2))


# -------------------------------------------------------------------- restoring


def interventions() -> st.SearchStrategy[Intervention]:
    layers = st.none() | st.lists(st.integers(-3, 2), min_size=1, max_size=3)
    heads = st.none() | st.lists(st.integers(-4, 3), min_size=1, max_size=4)
    queries = (
        st.none() | st.just("first") | st.lists(st.integers(0, 5), min_size=1) | st.just(range(3))
    )
    where = {"layers": layers, "heads": heads}
    rows = {**where, "queries": queries}
    factor = st.floats(0, 50, allow_nan=False)
    marked = st.sampled_from(["m", "first"])
    return st.one_of(
        st.builds(Suppress, marked, renormalize=st.booleans(), others=st.booleans(), **rows),
        st.builds(Boost, marked, factor.map(lambda f: f + 1), **rows),
        st.builds(Scale, marked, factor, renormalize=st.booleans(), others=st.booleans(), **rows),
        st.builds(Uniform, **rows),
        st.builds(Permuted, st.integers(0, 2**40), **rows),
        st.builds(ZeroValues, marked, **where),
        st.builds(AblateHeads, st.none(), st.floats(-2, 2), **rows),
    )


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(interventions(), min_size=1, max_size=4))
def test_any_edits_give_numbers_and_are_undone_bit_by_bit(
    tiny: Model, edits: list[Intervention]
) -> None:
    edits = [e for e in edits if needs(e) <= {"scores", "probabilities"} or not refused(tiny, e)]
    batch = marked_batch(tiny)
    plain = tiny.logits(batch.inputs)
    before = state(tiny)
    with tiny.edit(*edits):
        assert bool(tiny.logits(batch.inputs).isfinite().all())
    assert state(tiny) == before
    assert tiny.logits(batch.inputs).equal(plain)


def test_everything_is_undone_after_a_refusal_in_the_middle(demo: Model) -> None:
    batch = marked_batch(demo)
    plain, before = demo.logits(batch.inputs), state(demo)
    [maps] = demo.attention(demo.encode(["A dull film."]))
    with demo.edit(Frozen(maps.maps)), pytest.raises(InputError):
        demo.logits(batch.inputs)
    assert state(demo) == before
    assert demo.logits(batch.inputs).equal(plain)


# Estimates leave noise, and ranks no zeros.
OTHERS = {"random", "oracle", "lime", "kernel_shap", "exact_shapley"}


@pytest.mark.parametrize("name", [m for m in methods.names() if m not in OTHERS])
def test_every_method_explains_the_edited_model(demo: Model, name: str) -> None:
    """A token that nobody looks at has no say: the first layer hides its embedding from others."""
    batch = marked_batch(demo)
    method = methods.build(name)
    target = demo.target(batch)
    plain = method(demo, batch, target)
    with demo.edit(Suppress("m")):
        edited = method(demo, batch, target)
    hit = batch.inputs["mark:m"].bool()
    assert float(plain[hit].abs().max()) > 1e-3
    assert float(edited[hit].abs().max()) < 1e-5 < float(edited[~hit].abs().max())


def test_methods_run_under_edits(demo: Model) -> None:
    """Gradients flow through an edit, and rollout sees the edited maps."""
    encoding = mark(demo.encode(["A dull film."])[0], "m", words="dull")
    batch = demo.batch([encoding])
    target = demo.target(batch)
    with demo.edit(Suppress("m")):
        trace = demo.trace(batch, target, gradients=True)
    at = np.flatnonzero(encoding.row["mark:m"])
    for maps, gradient in zip(trace.maps, trace.gradients, strict=True):
        assert float(maps[..., at].abs().max()) == 0
        assert bool(gradient.isfinite().all())

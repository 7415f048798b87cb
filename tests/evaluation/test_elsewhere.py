"""Scores under other circumstances: noise in the embeddings, parameters that were shuffled."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max

from xattn.errors import InputError
from xattn.evaluation import Dataset, compare, load_dataset, metrics
from xattn.evaluation.randomisation import randomisation
from xattn.model import Model
from xattn.testing import TEXTS, network_state


def test_noise_is_of_a_token_wherever_it_stands(demo: Model) -> None:
    one, two = demo.encode(["dull, dull film", "a film that is dull"])
    plain = [demo.embeddings(demo.collate([e.row])) for e in (one, two)]
    before = network_state(demo.network)
    with demo.noisy(0.1, seed=3):
        shaken = [demo.embeddings(demo.collate([e.row])) for e in (one, two)]
    assert network_state(demo.network) == before
    noise = [b - a for a, b in zip(plain, shaken, strict=True)]
    first, last = (e.tokens.index("dull") for e in (one, two))
    torch.testing.assert_close(noise[0][0, first], noise[1][0, last])
    table = demo.network.get_input_embeddings().weight
    largest = 0.1 * float(table.detach().square().mean().sqrt())
    assert 0.9 * largest < float(noise[0].abs().max()) <= largest * (1 + 1e-5)
    torch.testing.assert_close(demo.embeddings(demo.collate([one.row])), plain[0])


def test_other_seeds_are_other_noise_and_the_same_seed_the_same(demo: Model) -> None:
    inputs = demo.collate([e.row for e in demo.encode(["dull film"])])

    def seen(seed: int) -> torch.Tensor:
        with demo.noisy(0.1, seed):
            return demo.embeddings(inputs)

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_max_sensitivity_is_that_of_captum(demo: Model, method: str) -> None:
    samples, radius = 4, 0.2
    [text] = TEXTS[:1]
    result = compare(
        demo,
        load_dataset_of(text),
        [method],
        ["mask"],
        metrics=[f"max_sensitivity:radius={radius},samples={samples}"],
    )
    name = f"max_sensitivity:radius={radius},samples={samples}"
    found = float(result.table("mask", name)[method].iloc[0])

    [encoding] = demo.encode([text])
    batch = demo.batch([encoding])
    target = demo.target(batch)
    embeddings = demo.embeddings(batch.inputs)
    noises = []
    for seed in range(samples):
        with demo.noisy(radius, seed):
            noises.append(demo.embeddings(batch.inputs) - embeddings)

    def scores(inputs: torch.Tensor | tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        rows = []
        for one in inputs if isinstance(inputs, torch.Tensor) else inputs[0]:
            _, gradient = demo.embedding_gradient(batch.inputs, one[None], target)
            if method == "saliency":
                rows.append(gradient.norm(dim=-1))
            else:
                rows.append((gradient * one).sum(-1))
        # units that can be removed: captum divides by the length of all that it is given
        return (torch.cat(rows)[:, torch.from_numpy(encoding.removable)],)

    waiting = cycle(noises)

    def perturb(inputs: torch.Tensor | tuple[torch.Tensor]) -> torch.Tensor:
        given = inputs if isinstance(inputs, torch.Tensor) else inputs[0]
        return given + torch.cat([next(waiting) for _ in range(len(given))])

    expected = sensitivity_max(scores, embeddings, perturb_func=perturb, n_perturb_samples=samples)
    assert found == pytest.approx(float(expected), rel=1e-4)


def load_dataset_of(text: str) -> Dataset:
    data = load_dataset(limit=1)
    return replace(data, texts=(text,), labels=None, rationales=None, kinds=None)


def test_randomisation_as_a_metric_is_the_table_of_randomisation(demo: Model) -> None:
    data = load_dataset(limit=4)
    names = ["rollout", "integrated_gradients:steps=20"]
    spec = "parameter_randomisation"
    result = compare(demo, data, names, ["mask"], metrics=[spec, f"{spec}:stage=head"])
    table = randomisation(demo, list(data.texts), names).set_index(["method", "stage"])["mean"]
    for name in names:
        for metric, stage in ((spec, "everything"), (f"{spec}:stage=head", "head")):
            found = result.table("mask", metric)[name].mean()
            assert found == pytest.approx(table[name, stage], abs=1e-6)
    assert result.table("mask", spec)["random"].mean() == 1


def test_scores_that_do_not_read_the_embeddings_are_not_moved(demo: Model) -> None:
    result = compare(
        demo, load_dataset(limit=2), ["rollout"], ["mask"], metrics=["max_sensitivity"]
    )
    table = result.table("mask", "max_sensitivity")
    assert (table["random"] == 0).all()
    assert (table["rollout"] > 0).all()
    assert "oracle" not in table.columns or np.isnan(table["oracle"]).all()


def test_bad_choices_are_told() -> None:
    with pytest.raises(InputError, match="radius of max_sensitivity"):
        metrics.build("max_sensitivity:radius=0")
    with pytest.raises(InputError, match="samples of max_sensitivity"):
        metrics.build("max_sensitivity:samples=1")
    with pytest.raises(InputError, match="stage of parameter_randomisation"):
        metrics.build("parameter_randomisation:stage=top")

"""The same methods by other libraries, for ``benchmarks/methods.py --rivals``.

Each library is asked for the same text and class with as many steps or samples as ours, one after
the other in one process. What a library does not offer for a model, or is not installed, is left
out with a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn.model import Model

Rival = tuple[str, str, Callable[[], Any]]
"""Library, our method with the same options, and what to time."""
STEPS, SAMPLES = 50, 200


def _captum(model: Model, text: str) -> Iterator[Rival]:
    from captum.attr import LayerGradientXActivation, LayerIntegratedGradients

    batch = model.batch(model.encode([text]))
    ids = batch.inputs["input_ids"]
    label = int(model.logits(batch.inputs).argmax())
    start = torch.where(batch.special, ids, model.token_id("auto"))
    mask = batch.inputs["attention_mask"]

    def forward(ids: Tensor) -> Tensor:
        logits: Tensor = model.network(
            input_ids=ids, attention_mask=mask.expand(len(ids), -1)
        ).logits
        return logits

    table = model.network.get_input_embeddings()
    product, integrated = (
        kind(forward, table) for kind in (LayerGradientXActivation, LayerIntegratedGradients)
    )
    yield "captum", "input_x_gradient", lambda: product.attribute(ids, target=label)
    for together in (None, 10):
        name = "captum" if together is None else f"captum, internal batch {together}"
        yield (
            name,
            f"integrated_gradients:steps={STEPS},max_steps={STEPS}",
            lambda together=together: integrated.attribute(
                ids, start, target=label, n_steps=STEPS, internal_batch_size=together
            ),
        )


def _interpreto(model: Model, text: str) -> Iterator[Rival]:
    from interpreto import Granularity, IntegratedGradients, KernelShap, Occlusion, Saliency

    form = {"granularity": Granularity.ALL_TOKENS, "batch_size": 10}
    network, tokenizer = model.network, model.tokenizer
    fixed = f"integrated_gradients:steps={STEPS},max_steps={STEPS}"
    yield "interpreto", "saliency", _called(Saliency(network, tokenizer, **form), text)
    integrated = IntegratedGradients(network, tokenizer, n_perturbations=STEPS, **form)
    yield "interpreto", fixed, _called(integrated, text)
    yield "interpreto", "occlusion", _called(Occlusion(network, tokenizer, **form), text)
    shap = KernelShap(network, tokenizer, n_perturbations=SAMPLES, **form)
    yield "interpreto", f"kernel_shap:samples={SAMPLES}", _called(shap, text)


def _ferret(model: Model, text: str) -> Iterator[Rival]:
    from ferret import GradientExplainer, IntegratedGradientExplainer

    label = int(model.logits(model.batch(model.encode([text])).inputs).argmax())
    network, tokenizer = model.network, model.tokenizer
    product = GradientExplainer(network, tokenizer, multiply_by_inputs=True)
    integrated = IntegratedGradientExplainer(network, tokenizer, multiply_by_inputs=True)
    fixed = f"integrated_gradients:steps={STEPS},max_steps={STEPS}"
    yield "ferret", "input_x_gradient", lambda: product(text, target=label)
    yield "ferret", fixed, lambda: integrated(text, target=label)


def _transformers_interpret(model: Model, text: str) -> Iterator[Rival]:
    from transformers_interpret import SequenceClassificationExplainer

    explainer = SequenceClassificationExplainer(model.network, model.tokenizer)
    fixed = f"integrated_gradients:steps={STEPS},max_steps={STEPS}"
    yield "transformers-interpret", fixed, lambda: explainer(text, n_steps=STEPS)


def _called(explainer: Callable[[str], Any], text: str) -> Callable[[], Any]:
    return lambda: explainer(text)


LIBRARIES: dict[str, Callable[[Model, str], Iterator[Rival]]] = {
    "captum": _captum,
    "interpreto": _interpreto,
    "ferret": _ferret,
    "transformers_interpret": _transformers_interpret,
}


def beside(
    size: str, model: Model, text: str, seconds: Callable[[Callable[[], Any]], float]
) -> None:
    """Print the seconds of every rival beside ours."""
    print(f"\n{size}, {len(model.encode([text])[0])} tokens, {torch.get_num_threads()} threads")
    print(f"{'method':44} {'library':28} {'ms':>9} {'ours ms':>9} {'ratio':>6}")
    found: dict[str, float] = {}
    for library, offers in LIBRARIES.items():
        if find_spec(library) is None:
            print(f"{'':44} {library:28} is not installed")
            continue
        for name, spec, task in offers(model, text):
            theirs = seconds(task)
            if spec not in found:
                found[spec] = seconds(lambda spec=spec: xattn.explain(model, [text], [spec]))
            print(
                f"{spec:44} {name:28} {1e3 * theirs:9.1f} {1e3 * found[spec]:9.1f} "
                f"{theirs / found[spec]:6.2f}",
                flush=True,
            )

"""What ferret, interpreto and Quantus say of given scores of tokens; imported where they are.

Each takes a classifier, a text, the scores of the tokens that can be removed, and the class; all
remove the token of the highest score first.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xattn.model import Model
from xattn.types import Floats


def ferret(
    model: Model, text: str, scores: Floats, label: int, *, delete: bool = True
) -> tuple[float, float]:
    """Return comprehensiveness and sufficiency at 10, 20 ... 100 % of the tokens."""
    from ferret.evaluators.faithfulness_measures import (
        AOPC_Comprehensiveness_Evaluation,
        AOPC_Sufficiency_Evaluation,
    )
    from ferret.explainers.explanation import Explanation

    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer(text)["input_ids"])
    # above 0, since ferret 0.4.2 stops at its option to take all tokens; the order is the same
    above = np.asarray(scores) - np.min(scores) + 1.0
    explanation = Explanation(text, tokens, np.array([0.0, *above, 0.0]), "given", label)
    found = [
        kind(model.network, model.tokenizer)
        .compute_evaluation(explanation, label, removal_args={"remove_tokens": delete})
        .score
        for kind in (AOPC_Comprehensiveness_Evaluation, AOPC_Sufficiency_Evaluation)
    ]
    return found[0], found[1]


def interpreto(
    model: Model, text: str, scores: Floats, label: int, kind: str, steps: int = 100
) -> tuple[float, list[float]]:
    """Return the area under the Deletion or Insertion curve, by masks, and the curve."""
    from interpreto import Granularity
    from interpreto.attributions import metrics
    from interpreto.attributions.base import AttributionOutput, ModelTask

    encoded = model.tokenizer([text], return_tensors="pt")
    output = AttributionOutput(
        attributions=torch.from_numpy(np.asarray(scores, dtype=np.float32))[None],
        elements=[str(i) for i in range(len(scores))],
        model_inputs_to_explain=encoded,
        targets=torch.tensor([label]),
        model_task=ModelTask.CLASSIFICATION,
        granularity=Granularity.TOKEN,
    )
    judge = getattr(metrics, kind)(model.network, model.tokenizer, n_perturbations=steps)
    area, curves = judge([output])
    return float(area), curves[0][0].tolist()


class _Words(nn.Module):
    """A classifier that takes the ids of the text as features, without special tokens."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network, tokenizer = model.network, model.tokenizer
        self.first, self.last = tokenizer.cls_token_id, tokenizer.sep_token_id

    def forward(self, features: Tensor) -> Tensor:
        ids = features.long().flatten(1)
        ends = [torch.full_like(ids[:, :1], token) for token in (self.first, self.last)]
        return self.network(input_ids=torch.cat([ends[0], ids, ends[1]], 1)).logits


def quantus(
    model: Model, ids: Sequence[int], scores: Floats, label: int, step: int = 1
) -> list[float]:
    """Return the curve of pixel flipping behind the first point, by masks."""
    pretend("torchvision")
    import quantus as library

    mask = float(model.tokenizer.mask_token_id)
    flipping = library.PixelFlipping(
        features_in_step=step,
        perturb_baseline=mask,
        disable_warnings=True,
        display_progressbar=False,
        normalise=False,
    )
    features = np.array(ids, dtype=np.float64)[None, None, None]
    [curve] = flipping(
        model=_Words(model).eval(),
        x_batch=features,
        y_batch=np.array([label]),
        # above 0: Quantus refuses scores that are all below
        a_batch=(np.asarray(scores, dtype=np.float64) - np.min(scores) + 1.0)[None, None, None],
        softmax=True,
        device="cpu",
        channel_first=True,
    )
    return [float(value) for value in curve]


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def pretend(name: str) -> None:
    """Put empty modules in place of a package that is not there."""
    try:
        __import__(name)
    except ImportError:
        parts = ("", ".models", ".models.vgg", ".models.resnet", ".transforms")
        sys.modules.update({name + part: _Empty(name + part) for part in parts})

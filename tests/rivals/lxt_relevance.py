"""Relevance by LXT, in a process of its own: it changes the classes of transformers for good.

``python lxt_relevance.py FOLDER MAP IDS`` prints the relevance of each token as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any
from unittest.mock import MagicMock

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

# LXT imports every model that it knows; two of them fail with newer libraries and are not used here
for name in ("bert", "vit_torch"):
    sys.modules[f"lxt.efficient.models.{name}"] = MagicMock()


class Interface(dict[str, Any]):
    """Attention functions by name; the modeling file's own for ``eager``."""

    def get_interface(self, name: str, default: Any) -> Any:
        return self.get(name, default)


def main(folder: str, rules: str, ids: str) -> None:
    from lxt.efficient import monkey_patch

    kind = AutoConfig.from_pretrained(folder).model_type
    modeling = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    maps = importlib.import_module(f"lxt.efficient.models.{kind}")
    monkey_patch(modeling, getattr(maps, rules))
    if not hasattr(modeling.ALL_ATTENTION_FUNCTIONS, "get_interface"):
        # LXT puts a plain dict in place of what newer versions of transformers ask this way
        functions = Interface(modeling.ALL_ATTENTION_FUNCTIONS)
        modeling.ALL_ATTENTION_FUNCTIONS = functions
    network = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    tokens = torch.tensor([json.loads(ids)])
    embeddings = network.get_input_embeddings()(tokens).requires_grad_()
    hidden = network.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    network.score(hidden[:, -1]).max().backward()
    relevance = (embeddings * embeddings.grad).sum(-1)[0]
    print(json.dumps(relevance.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Loading a model by path or Hub name, with errors that say what to do."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils import is_peft_available
from transformers.utils import logging as hf_logging
from transformers.utils.peft_utils import find_adapter_config_file

from xattn import demo
from xattn.errors import InputError, ModelError
from xattn.model import wrappers
from xattn.model.adapter import Model
from xattn.model.tasks import Task, get_task, task_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """Return the torch device called `device`; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises
    ------
    InputError
        If the device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    kind = device.partition(":")[0]
    if not there.get(kind, False):
        raise InputError(
            "device", got=repr(device), expected="one of " + ", ".join(k for k in there if there[k])
        )
    return torch.device(device)


def load(
    model: str | Path | None = None,
    *,
    task: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    memory: float | None = None,
) -> Model:
    """Load a model and what reads its inputs: a tokenizer, an image processor, or both.

    Parameters
    ----------
    model : str or Path, optional
        A folder or the name of a model on the Hugging Face Hub; by default a small model that
        comes with xattn: one for sentiment, or, with the task ``generate``, one for stories. Also
        the folder or name of a PEFT adapter, if the extra ``peft`` is installed: the model that it
        names as its base is loaded under it.
    task : str, optional
        ``classify`` (one class, several classes or numbers for a text), ``tag`` (a class for each
        word), ``answer`` (a span of a passage), ``fill`` (a masked token), ``generate`` (causal
        decoders and encoder-decoders), ``image`` (one class, several classes or numbers for a
        picture) or ``match`` (how well a text and a picture fit); by default what the checkpoint
        was made for.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``auto``.
    dtype : str
        ``float32``, ``bfloat16`` or ``float16``.
    revision : str, optional
        Branch, tag or commit of a model on the Hub.
    memory : float, optional
        GiB that the activations of one forward and backward pass may take; see `Model`.

    Returns
    -------
    Model

    Raises
    ------
    ModelError
        If it cannot be found or read, or has no trained weights for the task.
    UnknownNameError
        For an unknown task.

    Examples
    --------
    >>> load().labels
    ('negative', 'positive')
    """
    wanted = None if task is None else get_task(task)
    name, shown = _default(task) if model is None else (str(model), str(model))
    place = resolve_device(device)
    if dtype not in DTYPES:
        raise InputError("dtype", got=repr(dtype), expected="one of " + ", ".join(DTYPES))
    if _looks_like_path(name) and not Path(name).is_dir():
        raise ModelError(
            "no such model folder", got=name, remedy="give a folder with config.json, or a Hub name"
        )
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hub_verbosity = hub_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)  # its retries are told in one line, at the end
    hf_logging.disable_progress_bar()
    try:
        adapter = _adapter(name, revision)
        base = name if adapter is None else adapter.base_model_name_or_path
        # an adapter's commit says nothing about its base
        commit = revision if adapter is None else adapter.revision
        config = AutoConfig.from_pretrained(base, revision=commit)
        chosen = wanted or _made_for(config, adapter)
        auto = chosen.auto_class(config)
        network, report = auto.from_pretrained(
            base, config=config, revision=commit, dtype=DTYPES[dtype], output_loading_info=True
        )
        tokenizer = _reader(chosen, base, commit)
        missing = set(report["missing_keys"]) | set(map(str, report["mismatched_keys"]))
        if adapter is not None:
            network, brought = _under(network, adapter, name, revision)
            missing -= brought
    except (KeyboardInterrupt, MemoryError, ModelError):
        raise
    except Exception as error:  # transformers, safetensors, json and the network each raise theirs
        raise _explained(name, error, wanted) from error
    finally:
        hf_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            hf_logging.enable_progress_bar()
    if missing:
        raise ModelError(
            f"{name} has no trained weights for {len(missing)} parameters, which would be random",
            got=", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else ""),
            expected=f"a checkpoint that was trained for the task {chosen.name}",
            remedy="name a checkpoint with a trained head, or another task (--task)",
        )
    texts = getattr(tokenizer, "tokenizer", tokenizer)
    if hasattr(texts, "all_special_ids") and len(texts) <= len(texts.all_special_ids):
        raise ModelError(
            f"{name} has no tokenizer",
            got=f"a vocabulary of {len(texts)} special tokens",
            remedy="save the tokenizer into the folder of the model",
        )
    if wrappers.device(network) != place:  # quantised networks cannot be moved
        network = network.to(place)
    found = getattr(config, "_commit_hash", None)
    return Model(
        network,
        tokenizer,
        task=chosen.name,
        name=shown,
        revision=revision or found,
        memory=memory,
    )


def _reader(task: Task, name: str, revision: str | None) -> Any:
    """Return what reads the inputs of a task: a tokenizer, an image processor, or both in one."""
    if task.name == "image":
        # the one kind that needs no torchvision, and gives the same pixels with and without it
        return AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil")
    if task.name == "match":
        return AutoProcessor.from_pretrained(name, revision=revision, backend="pil")
    return AutoTokenizer.from_pretrained(name, revision=revision, use_fast=True)


def _default(task: str | None) -> tuple[str, str]:
    """Return folder and name of the model that comes with xattn for a task."""
    sentiment = (str(demo.MODEL), demo.NAME)
    storyteller = (str(demo.STORYTELLER), demo.STORYTELLER_NAME)
    models = {None: sentiment, "classify": sentiment, "generate": storyteller}
    if task not in models:
        raise InputError(
            f"no model for the task {task} comes with xattn",
            remedy="name a folder or a model on the Hub (--model)",
        )
    return models[task]


ADAPTED = {
    "SEQ_CLS": "classify", "TOKEN_CLS": "tag", "QUESTION_ANS": "answer",
    "CAUSAL_LM": "generate", "SEQ_2_SEQ_LM": "generate",
}  # fmt: skip
"""PEFT's names of tasks, and ours."""


def _made_for(config: Any, adapter: Any) -> Task:
    """Return the task that a checkpoint, or the adapter on top of it, was trained for."""
    named = ADAPTED.get(str(getattr(adapter, "task_type", None)).rpartition(".")[2])
    return task_of((config.architectures or [""])[0]) if named is None else get_task(named)


def _adapter(name: str, revision: str | None) -> Any:
    """Return the PEFT configuration of an adapter; None for anything else."""
    file = find_adapter_config_file(name, revision=revision)
    if file is None or Path(file).with_name("config.json").exists():
        return None
    if not is_peft_available():
        raise ModelError(
            f"{name} is an adapter, not a model",
            expected="the package peft, which puts it into its base model",
            remedy='install it: pip install "xattn[peft]"',
        )
    peft: Any = importlib.import_module("peft")  # only where an adapter is loaded
    return peft.PeftConfig.from_pretrained(name, revision=revision)


def _under(network: Any, adapter: Any, name: str, revision: str | None) -> tuple[Any, set[str]]:
    """Put an adapter into its base; also return the base's parameters that it brings along."""
    peft: Any = importlib.import_module("peft")
    brought = peft.load_peft_weights(name, device="cpu", revision=revision)
    wrapped = peft.PeftModel.from_pretrained(network, name, config=adapter, revision=revision)
    return wrapped, {key.removeprefix("base_model.model.") for key in brought}


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _explained(name: str, error: Exception, task: Task | None) -> ModelError:
    """Turn whatever the libraries raised into one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    facts: dict[str, Any] = {"got": f"{type(error).__name__}: {first}"}
    if isinstance(error, json.JSONDecodeError) or "afetensor" in f"{type(error)}{error}":
        return ModelError(
            f"a file of the model {name} is damaged", **facts, remedy="download or save it again"
        )
    if "Unrecognized configuration class" in str(error):
        return ModelError(
            f"the model {name} does not serve the task {task.name if task else 'classify'}",
            got=first.split(" for this kind")[0],
            expected="an architecture with a head for it",
            remedy="name another task (--task)",
        )
    return ModelError(
        f"the model {name} cannot be loaded",
        **facts,
        remedy="check the name, the folder and, for the Hub, the network",
    )

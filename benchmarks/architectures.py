"""Which architectures the tap serves: a small random model of every class behind the Auto classes.

Run it with ``python benchmarks/architectures.py``; it takes some five minutes on one core, prints
what it finds and writes ``docs/architectures.md``. Name Auto classes or model types to see only
those (nothing is written then): ``python benchmarks/architectures.py AutoModelForCausalLM llama``.

Nothing is downloaded. Every configuration is the default one of its class with the known sizes made
small and the weights of linear layers made large, since small ones make every attention map uniform
and every backend look right. Each model runs in a process of its own with limits on time and
memory.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from xattn.errors import AttentionError
from xattn.model.attach import BACKENDS, find_backend
from xattn.model.tap import Edit, Tap

AUTO = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSequenceClassification": "SEQUENCE_CLASSIFICATION",
    "AutoModelForTokenClassification": "TOKEN_CLASSIFICATION",
    "AutoModelForQuestionAnswering": "QUESTION_ANSWERING",
    "AutoModelForMaskedLM": "MASKED_LM",
    "AutoModelForSeq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM",
    "AutoModelForImageClassification": "IMAGE_CLASSIFICATION",
}
OUTCOMES = {
    "A": "served through transformers' attention interface",
    "B": "served by catching the softmax in the model's own code (`softmax`), or in those of its "
    "modules that do not follow the interface (`mixed`)",
    "maps": "maps can be read, without gradient; edits are refused",
    "no attention": "the model has none",
    "refused": "attention was seen, but no backend reproduces the logits",
    "not built small": "nothing is known: the default configuration made small does not run",
}
PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
SECONDS, BYTES, PARAMETERS = 60, 12 << 30, 40_000_000

# Sizes by the names that configurations give them; the first pattern that fits decides. Only
# numbers that are larger are changed.
SIZES: dict[str, tuple[str, int]] = {
    "types": (r"type_vocab_size", 2),
    "vocabulary": (r".*vocab_size.*|n_vocab", 160),
    "positions": (r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|"
                  r"max_seq_len.*|context_length|model_max_length|prompt_length|"
                  r"original_max_position_embeddings", 64),
    "layers": (r"(.*num_hidden|num|n|num_decoder|num_encoder|encoder|decoder)_?layers?|"
               r"num_nextn_predict_layers|num_blocks|num_hidden_groups", 2),
    "keys": (r"(swa_)?(num_key_value_heads|num_kv_heads|num_query_groups|n_kv_heads|kv_n_heads)",
             2),
    "heads": (r".*(num|n)(_attention)?_heads?|(encoder|decoder)_attention_heads|"
              r"linear_num_.*_heads", 4),
    "hidden": (r"hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|embedding_size|dim_model|d_embed|"
               r"word_embed_proj_dim|embedding_dim|attention_hidden_size|lru_width|hidden_dim|"
               r"(input|output)_embedding_size|backbone_hidden_size|projection_dim|"
               r"bottleneck_size|pooler_hidden_size", 32),
    "inner": (r".*(intermediate|ffn|dff|dim_ff|inner|feed_forward).*", 48),
    "head": (r"(swa_|global_|v_|qk_nope_|index_|linear_|linear_key_|linear_value_)?head_dim|d_head|"
             r"kv_channels|dim_head|d_kv|attention_head_dim|attention_head_size", 8),
    "rotary": (r"qk_rope_head_dim|rotary_dim", 4),
    "query": (r"qk_head_dim", 12),
    "rank": (r".*_rank|.*topk", 8),
    "experts": (r".*(num|n)(_routed|_local)?_experts|moe_num_experts", 4),
    "chosen": (r"num_experts_per_tok|moe_k|moe_topk|top_k.*|n_activated_experts", 2),
    "groups": (r"n_group|topk_group", 1),
    "window": (r".*(window|chunk).*", 8),
    "image": (r"image_size", 32),
    "patch": (r"patch_size", 8),
}  # fmt: skip
# Configurations demand that some sizes go together. What is named here keeps its default; the first
# choice that gives a model that runs is taken.
KEPT: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"keys"}),
    frozenset({"layers"}),
    frozenset({"window"}),
    frozenset({"image", "patch", "window"}),
    frozenset({"rotary", "head", "query", "keys", "groups"}),
    frozenset(SIZES) - {"vocabulary", "layers", "positions", "inner"},
    frozenset(SIZES) - {"vocabulary", "layers"},
    frozenset(SIZES) - {"vocabulary"},
)


@dataclass
class Finding:
    """What became of one model class."""

    auto: str
    kind: str
    outcome: str
    backend: str = ""
    sites: int = 0
    note: str = ""


def small(config: Any, kept: frozenset[str]) -> Any:
    """Return a configuration of the same class whose known sizes are small."""
    return type(config)(**_changes(config, kept))


def _changes(config: Any, kept: frozenset[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    stored = config.to_dict()
    heads = next(
        (stored[n] for n in ("num_attention_heads", "n_heads", "n_head") if n in stored), 0
    )
    for name, value in stored.items():
        if name in config.sub_configs and getattr(config, name, None) is not None:
            part = getattr(config, name)
            changes[name] = {"model_type": part.model_type, **_changes(part, kept)}
        elif isinstance(value, int) and not isinstance(value, bool):
            if re.fullmatch(r".*token_(id|index)", name):  # apart, and none of the ids of an input
                changes[name] = value if value < 6 else 100 + len(changes) % 60
            for what, (pattern, size) in SIZES.items():
                if re.fullmatch(pattern, name):
                    if what == "keys" and value == heads and what not in kept:
                        size = 4  # every query head has its own key head
                    if size < value and what not in kept:
                        changes[name] = size
                    break
    if "keys" in kept and "heads" not in kept:
        changes |= {n: 4 for n in stored if re.fullmatch(SIZES["keys"][0], n)}
    kinds = stored.get("layer_types") or stored.get("layers_block_type")
    if kinds and "layers" not in kept:  # hybrids: as many layers as show every kind
        count = next(n for n in range(1, len(kinds) + 1) if {*kinds[:n]} == {*kinds})
        changes |= {n: max(2, count) for n in ("num_hidden_layers", "num_layers") if n in changes}
    return changes


def enlarge(network: nn.Module) -> None:
    """Give linear layers and embeddings random weights that make attention uneven."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            inputs = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            nn.init.normal_(module.weight, 0, 1.4 * inputs**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 0.25)


def inputs_for(auto: str, network: Any, length: int) -> dict[str, Tensor]:
    """Return an input of two rows, the second one shorter where there is a mask."""
    config = network.config
    if "Image" in auto:
        size = getattr(config, "image_size", 32)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.randn(2, getattr(config, "num_channels", 3), height, width)}
    ids = torch.randint(10, 60, (2, length))
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and config.is_encoder_decoder:
        ids[:, -3] = end  # sequences are classified there
    mask = torch.ones_like(ids)
    if "CausalLM" not in auto and length > 7:
        mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.is_encoder_decoder and "Seq2Seq" in auto:
        inputs["decoder_input_ids"] = torch.randint(10, 60, (2, length - 2))
    return inputs


def built(auto: str, kind: str) -> Any:
    """Return a small random network that runs, or raise what the first choice of sizes raised."""
    first = None
    for kept in KEPT:
        try:
            network = _build(auto, kind, kept)
            with torch.no_grad():
                logits = logits_of(network, inputs_for(auto, network, 9))
            if bool(logits.isfinite().all()):
                return network
            raise ValueError("logits are not finite")
        except Exception as error:  # sizes that do not go together can raise anything
            first = first or error
    assert first is not None
    raise first


def _build(auto: str, kind: str, kept: frozenset[str]) -> Any:
    names = getattr(modeling_auto, f"MODEL_FOR_{AUTO[auto]}_MAPPING_NAMES")
    network_class = getattr(
        transformers, names[kind] if isinstance(names[kind], str) else names[kind][0]
    )
    config = small(CONFIG_MAPPING[kind](), kept)
    if network_class.config_class and not isinstance(config, network_class.config_class):
        config = config.get_text_config()  # the text part of a model of text and images
    if "CausalLM" in auto:
        config.is_decoder = True
    if "Image" not in auto:
        _complete(config)
    with torch.device("meta"):
        count = sum(p.numel() for p in network_class(config).parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    network = network_class(config).eval()
    enlarge(network)
    return network


def _complete(config: Any) -> None:
    """Name what default configurations leave to those of trained models."""
    for part in (config, config.get_text_config()):
        for name, value in (("pad_token_id", 0), ("decoder_start_token_id", 0)):
            if getattr(part, name, None) is None:
                setattr(part, name, value)
        if getattr(part, "vocab_size", 0) is None:
            part.vocab_size = SIZES["vocabulary"][1]
    if hasattr(config, "languages"):  # X-MOD has an adapter for each language
        config.default_language = config.languages[0]


def logits_of(network: Any, inputs: dict[str, Tensor]) -> Tensor:
    output = network(**inputs)
    found = getattr(output, "logits", None)
    if found is None:
        found = getattr(output, "start_logits", None)
    if found is None:
        found = next(v for v in output.values() if isinstance(v, Tensor))
    return found


def examine(auto: str, kind: str) -> Finding:
    """Build one model, attach to it and check the logits on an input that attaching did not see."""
    try:
        network = built(auto, kind)
        inputs = inputs_for(auto, network, 9)
        with torch.no_grad():
            plain = logits_of(network, inputs)
    except Exception as error:  # whatever a configuration made small can raise is the finding
        return Finding(auto, kind, "not built small", note=_line(error))
    try:
        probe = inputs_for(auto, network, 7)
        found = find_backend(network, lambda: logits_of(network, probe))
    except AttentionError as error:
        absent = re.search(r"mixed: none; softmax: none; maps: none", str(error))
        return Finding(auto, kind, "no attention" if absent else "refused", note=_line(error))
    edit = Edit(probabilities=lambda site, probabilities: probabilities)
    with torch.no_grad(), BACKENDS[found.backend](network, Tap(network, (edit,))):
        difference = float((logits_of(network, inputs) - plain).abs().max())
    if difference > 1e-4 * max(1.0, float(plain.abs().max())):
        return Finding(auto, kind, "refused", found.backend, note=f"logits off by {difference:.1g}")
    outcome = {"interface": "A", "maps": "maps"}.get(found.backend, "B")
    missing = sorted({"scores", "probabilities", "values", "outputs", "gradients"} - found.serves)
    notes = [f"without {', '.join(missing)}"] if missing and outcome != "maps" else []
    if found.skipped:
        notes.append(f"{len(found.skipped)} layers without attention")
    return Finding(auto, kind, outcome, found.backend, len(found.sites), "; ".join(notes))


def _line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.replace("|", "/")


def apart(auto: str, kind: str) -> Finding:
    """Examine in a child process, which may hang, crash or ask for too much memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        signal.alarm(SECONDS)
        with os.fdopen(writer, "w") as pipe:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the process ends with it
            pipe.write(dumps(asdict(examine(auto, kind))))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return Finding(**loads(answer))
    note = f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "crashed"
    return Finding(auto, kind, "not built small", note=note)


def page(findings: list[Finding]) -> str:
    """Return the findings as Markdown."""
    lines = [
        "# Architectures",
        "",
        f"Written by `python benchmarks/architectures.py` with transformers "
        f"{transformers.__version__} and torch {torch.__version__.split('+')[0]}; do not edit. "
        "One small random model was built for every configuration class behind seven Auto "
        "classes, and attached to. Served means that every site was reached and the logits on an "
        "input that attaching had not seen equal those without a tap within 1e-4 of the largest.",
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in OUTCOMES.items()),
        "",
        f"| Auto class | {' | '.join(OUTCOMES)} | served, of those built |",
        f"|---|{'---|' * (len(OUTCOMES) + 1)}",
    ]
    for auto in AUTO:
        count = Counter(f.outcome for f in findings if f.auto == auto)
        total = count.total() - count["not built small"]
        lines.append(
            f"| {auto} | {' | '.join(str(count[o]) for o in OUTCOMES)} "
            f"| {count['A'] + count['B']} of {total} |"
        )
    for auto in AUTO:
        lines += ["", f"## {auto}", "", "| architecture | served by | backend | sites | notes |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for f in (f for f in findings if f.auto == auto):
            note = f.note if len(f.note) <= 120 else f"{f.note[:117]}..."
            note = "" if f.outcome == "no attention" else note.replace("*", "\\*")
            lines.append(f"| {f.kind} | {f.outcome} | {f.backend} | {f.sites or ''} | {note} |")
    return "\n".join(lines) + "\n"


def main(chosen: list[str]) -> None:
    transformers.logging.set_verbosity(50)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    autos, kinds = {*chosen} & {*AUTO}, {*chosen} - {*AUTO}
    findings = []
    for auto, short in AUTO.items():
        for kind in getattr(modeling_auto, f"MODEL_FOR_{short}_MAPPING_NAMES"):
            if (autos and auto not in autos) or (kinds and kind not in kinds):
                continue
            f = apart(auto, kind)
            findings.append(f)
            print(f"{auto:34} {kind:24} {f.outcome:15} {f.backend:9} {f.sites:3} {f.note[:300]}")
            sys.stdout.flush()
    for auto in AUTO:
        print(f"{auto:34}", dict(Counter(f.outcome for f in findings if f.auto == auto)))
    if not chosen:
        PAGE.write_text(page(findings), encoding="utf-8")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])

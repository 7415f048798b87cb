"""AttnLRP and CP-LRP equal those of their authors' library, LXT, where it serves the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import xattn
from xattn.model import Model
from xattn.testing import TEXTS

pytest.importorskip("lxt")
SCRIPT = Path(__file__).with_name("lxt_relevance.py")


@pytest.mark.parametrize(
    ("method", "rules"), [("attnlrp", "attnLRP"), ("cp_lrp:gate=coefficient", "cp_LRP")]
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_relevance_equals_that_of_lxt(
    tiny_of: Callable[..., Model], tmp_path: Path, family: str, method: str, rules: str
) -> None:
    model = tiny_of(family)
    model.network.save_pretrained(tmp_path)
    [encoding] = model.encode(TEXTS[:1])
    ids = json.dumps(encoding.row["input_ids"].tolist())
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), rules, ids],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    theirs = np.array(json.loads(run.stdout.splitlines()[-1]))
    ours = xattn.explain(model, [encoding], [method])[0].scores
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())

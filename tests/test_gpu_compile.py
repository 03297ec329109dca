"""BERT-base's training step compiled for eight H100s that are not here: its kernels, its memory, what crosses the devices."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("BERT_JAX_CUDA", "/nowhere"))
ROWS, LENGTH = 8, 512  # of a device
pytestmark = pytest.mark.gpu_compile

COMPILE = """
import json, re, sys
from bert_jax import plan
from bert_jax.config import BertConfig, ComputeConfig, DataConfig, TrainConfig
from bert_jax.model import attention
from bert_jax.program import build
from bert_jax.training import memory, parallel

rate, rows, length = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cfg = TrainConfig(
    model=BertConfig(attention_probs_dropout_prob=rate), compute=ComputeConfig(dtype="bfloat16", scan_layers=True, remat="none"),
    data=DataConfig(max_seq_length=length), batch_size=8 * rows,
)
devices = parallel.Devices(parallel.make_mesh(plan.Topology("h100:8").devices()))
program = build(cfg, devices, None)
with attention.for_platform("gpu"):
    compiled = program.train_step.lower(program.abstract_state, program.abstract_batch).compile()
text, analysis = compiled.as_text(), compiled.memory_analysis()
share = memory.DeviceShare.of_run(cfg, "gpu", 8, 1, 1)
print(json.dumps({
    "targets": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
    "heads_by_pairs": len(re.findall(rf"\\[(?:\\d+,)*12,{length},{length}\\]", text)),
    "needed": analysis.peak_memory_in_bytes,
    "estimated": memory.total_bytes(program.cfg.model, program.cfg.compute, share),
    "crossing": [(c.kind, c.times * c.size, c.group) for c in plan.collectives(text)],
    "parameters": sum(x.size for x in __import__("jax").tree.leaves(program.abstract_state.params)),
}))
"""


@pytest.fixture(scope="module")
def compiled():
    """What the compiler made of the step, by the rate of dropout on attention's probabilities."""
    if not FOLDER.is_dir() and find_spec("jax_cuda12_plugin") is None:
        pytest.skip("needs the CUDA plugin of jax and cuDNN, installed or in the folder BERT_JAX_CUDA: see docs/devices.md")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "NPROC", "XLA_"))}
    environment = inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)])}
    made = {}
    for rate in (0.0, 0.1):
        command = [sys.executable, "-c", COMPILE, str(rate), str(ROWS), str(LENGTH)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
        made[rate] = json.loads(done.stdout.splitlines()[-1])
    return made


def test_without_dropout_on_its_probabilities_attention_is_cudnns_and_no_scores_are_kept(compiled):
    assert {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"} <= set(compiled[0.0]["targets"])
    assert compiled[0.0]["heads_by_pairs"] == 0


def test_with_it_attention_is_xlas(compiled):
    assert not any("fmha" in target for target in compiled[0.1]["targets"])
    assert compiled[0.1]["heads_by_pairs"] > 0


def test_the_kernel_saves_more_than_the_scores_of_a_layer(compiled):
    scores = 12 * ROWS * 12 * LENGTH * LENGTH * 4
    assert compiled[0.1]["needed"] - compiled[0.0]["needed"] > scores


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_gradients_alone_cross_the_devices_once(compiled, rate):
    assert {(kind, group) for kind, _, group in compiled[rate]["crossing"]} == {("all-reduce", 8)}
    crossed, gradients = sum(size for _, size, _ in compiled[rate]["crossing"]), 4 * compiled[rate]["parameters"]
    table = 4 * 30522 * 768  # lookup and output layer each have a part in its gradient, and may cross apart
    assert gradients <= crossed <= gradients + table + 2**20

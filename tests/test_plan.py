"""The plan of a run for devices that are not here."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from test_steps import lowered

from bert_jax import plan, pretraining
from bert_jax.__main__ import main
from bert_jax.config import BertConfig, DataConfig, InputError, OptimConfig, ParallelConfig, TrainConfig
from bert_jax.training import memory, metrics, parallel

ROOT = Path(__file__).parent.parent
GIB = 2**30
SMALL = TrainConfig(
    num_steps=10, batch_size=16, optim=OptimConfig(warmup_steps=2), data=DataConfig(max_seq_length=128),
    model=BertConfig(vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
                     hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=128),
)  # fmt: skip

HLO = """
HloModule jit_step, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %inner = f32[16,4]{1,0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}, metadata={op_name="jit(step)/layer"}
}

%condition (state: (s32[], f32[4])) -> pred[] {
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[] {
  %loop = (s32[], f32[4]{0}) while(%init), condition=%condition, body=%body
  %both = (f32[8,2]{1,0}, bf16[10]{0}, /*index=2*/f32[]) all-reduce(%p, %q, %r), replica_groups={{0,1,2,3},{4,5,6,7}}
  %begun = (f32[4]{0}, f32[32]{0}) all-gather-start(%y), replica_groups=mesh['a'=2,'b'=4]{'b'}, dimensions={0}
  %done = f32[32]{0} all-gather-done(%begun)
  ROOT %moved = f32[3]{0} collective-permute(%z), source_target_pairs={{0,1}}
}
"""


def test_collectives_are_read_with_sizes_groups_and_how_often_loops_repeat_them():
    found = {(c.kind, c.times): c for c in plan.collectives(HLO)}
    assert found.keys() == {("all-gather", 3), ("all-reduce", 1), ("all-gather", 1), ("collective-permute", 1)}
    looped = found["all-gather", 3]
    assert (looped.shapes, looped.size, looped.group, looped.operation) == (("f32[16,4]",), 256, 2, "jit(step)/layer")
    reduced = found["all-reduce", 1]
    assert (reduced.shapes, reduced.size, reduced.group) == (("f32[8,2]", "bf16[10]", "f32[]"), 64 + 20 + 4, 4)
    assert (found["all-gather", 1].size, found["all-gather", 1].group) == (128, 4)
    assert reduced.sent(8) == 2 * 3 / 4 * 88  # a ring: each device sends every part but one, twice
    assert found["all-gather", 1].sent(8) == 3 / 4 * 128


def test_data_parallel_devices_send_each_gradient_once():
    step, state, batch = lowered("adamw_bert", "8x1x1", 1, False, 1.0)
    found = plan.collectives(step.lower(state, batch).compile().as_text())
    size = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    assert {c.kind for c in found} == {"all-reduce"}
    assert size <= sum(c.size for c in found) < 1.1 * size


def test_compiled_products_are_those_of_the_formula():
    """Unrolled: a scan's body is counted once. What is not a product (GELU, softmax, the optimizer) is in the ten percent."""
    devices = parallel.make_devices(ParallelConfig(num_devices=1))
    large = SMALL.model.replace(hidden_size=256, intermediate_size=1024, vocab_size=4096)
    program = pretraining.build(SMALL.replace(model=large), devices, None)
    compiled = program.train_step.lower(program.abstract_state, program.abstract_batch).compile()
    formula = metrics.pretraining_flops(large, 16, 128, SMALL.masking.num_slots(128))
    assert 0.95 < compiled.cost_analysis()["flops"] / formula < 1.1


def run(*argv, **environment):
    command = [sys.executable, "-m", "bert_jax", "plan", *argv]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "NPROC", "XLA_"))}
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=600)


CONFIG = """
from bert_jax.config import BertConfig, DataConfig, TrainConfig

def get_config():
    return TrainConfig(num_steps=20_000, batch_size=16, data=DataConfig(max_seq_length=32), model=BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64))
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return str(tmp_path / "tiny.py")


def test_a_plan_for_simulated_devices_says_what_there_is_to_know(config):
    done = run(config, "--topology", "cpu:4", "--parallel.fsdp", "2")
    assert done.returncode == 0, done.stderr
    assert "4 x cpu as a mesh (data 2 x fsdp 2), 4 rows each" in done.stdout
    for name in ("parameters", "optimizer state", "activations and temporaries", "all-reduce of", "all-gather of", "FLOPs"):
        assert name in done.stdout, name


def test_several_topologies_are_a_table(config):
    done = run(config, "--topology", "cpu:1,cpu:2")
    assert done.returncode == 0, done.stderr
    header, rule, *rows = done.stdout.splitlines()
    assert header.startswith("| topology")
    assert set(rule) == {"|", "-"}
    assert [row.split()[1] for row in rows] == ["cpu:1", "cpu:2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "unknown topology 'v5e': known are v5e:2x4, "),
        ("v9:2x2", "unknown topology 'v9:2x2'"),
        ("v5e:2x2x2", "v5e chips lie in 2 dimensions"),
        ("cpu:0", "unknown topology 'cpu:0'"),
        ("v4:2x2", "v4 chips lie in 3 dimensions"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        plan.Topology(name)


def test_what_is_missing_and_what_does_not_divide_is_said(monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu, the compiler for TPUs, is not installed: pip install 'libtpu"):
        plan.Topology("v5e:2x4").devices()
    with pytest.raises(InputError, match="pmap"):
        plan.make(SMALL.replace(parallel=ParallelConfig(strategy="pmap")), plan.Topology("cpu:8"))
    with pytest.raises(InputError, match=r"batch_size=12 does not divide over 8 devices"):
        plan.make(SMALL.replace(batch_size=12), plan.Topology("cpu:8"))
    with pytest.raises(InputError, match="jax was started with 8 simulated devices"):
        plan.Topology("cpu:9").devices()


def test_the_command_lists_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "--topology" in capsys.readouterr().out


BASE = BertConfig.preset("base", dtype="bfloat16")


@pytest.mark.parametrize(
    ("rows", "length", "slots", "hbm", "remat"),
    [(8, 128, 20, 15.75, "none"), (32, 512, 77, 15.75, "dots"), (96, 512, 77, 15.75, "full"), (32, 512, 77, 95.74, "none"),
     (1, 8, 2, None, "none")],
)  # fmt: skip
def test_the_least_is_recomputed_that_fits(rows, length, slots, hbm, remat):
    chosen = memory.automatic(BASE, memory.Load(rows, length, slots), "tpu", hbm and int(hbm * GIB))
    assert (chosen.remat, chosen.scan_layers) == (remat, True)
    asked = memory.automatic(BASE.replace(remat="full", scan_layers=False), memory.Load(rows, length, slots), "tpu", 10**15)
    assert (asked.remat, asked.scan_layers) == ("full", False)


def test_cutting_parameters_and_recomputing_need_less():
    load = memory.Load(8, 512, 77)
    base = BASE.replace(scan_layers=True)
    sizes = [memory.total_bytes(base.replace(remat=how), load) for how in ("none", "dots", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert memory.state_bytes(BASE, replace(load, fsdp=8)) == memory.state_bytes(BASE, load) / 8
    assert memory.parameters(BASE) == pytest.approx(110.1e6, rel=0.01)  # Devlin et al., 2018, section 3


@pytest.mark.tpu_compile
def test_a_run_is_planned_for_a_tpu_and_what_does_not_fit_says_what_would():
    pytest.importorskip("libtpu")
    base = ["configs/bert_base.py", "--data.max-seq-length", "512", "--batch-size", "256"]
    fits = run(*base, "--topology", "v5e:2x4")
    assert fits.returncode == 0, fits.stderr
    assert "yes, " in fits.stdout
    assert "recomputed: dots" in fits.stdout
    refused = run(*base, "--topology", "v5e:2x4", "--model.remat", "none")
    assert "no, " in refused.stdout
    assert "the compiler: RESOURCE_EXHAUSTED" in refused.stdout
    assert "--model.remat dots" in refused.stdout

"""The plan of a run for devices that are not here."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from bert_jax import plan
from bert_jax.__main__ import main
from bert_jax.commands.plan import _phases, _report
from bert_jax.config import BertConfig, ComputeConfig, DataConfig, InputError, OptimConfig, ParallelConfig, Phase, TrainConfig
from bert_jax.program import Program, build
from bert_jax.training import flops, memory, parallel

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
    assert (looped.shapes, looped.size, looped.group) == (("f32[16,4]",), 256, 2)
    reduced = found["all-reduce", 1]
    assert (reduced.shapes, reduced.size, reduced.group) == (("f32[8,2]", "bf16[10]", "f32[]"), 64 + 20 + 4, 4)
    assert (found["all-gather", 1].size, found["all-gather", 1].group) == (128, 4)
    assert reduced.sent(8) == 2 * 3 / 4 * 88  # a ring: each device sends every part but one, twice
    assert found["all-gather", 1].sent(8) == 3 / 4 * 128


OTHER_FORMS = """
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (state: (s32[])) -> (s32[]) {
  %started = f32[4]{0} all-reduce-start(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %ended = f32[4]{0} all-reduce-done(%started)
}

%outer_body (state: (s32[])) -> (s32[]) {
  %inner = (s32[]) while(%state), condition=%unknown, body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}
}

%wrapped (p: f32[32]) -> f32[8] {
  ROOT %part = f32[8]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}

%all-reduce-scatter.1 (p: bf16[32,8]) -> bf16[8,8] {
  %whole = bf16[32,8]{1,0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, to_apply=%add
  ROOT %cut = bf16[8,8]{1,0} dynamic-slice(%whole, %i, %zero), dynamic_slice_sizes={8,8}
}

%branch (p: f32[2]) -> f32[2] {
  ROOT %swapped = f32[2]{0} all-to-all(%p), replica_groups={}
}

ENTRY %main (p: f32[8]) -> f32[] {
  %loop = (s32[]) while(%init), condition=%unknown, body=%outer_body, backend_config={"known_trip_count":{"n":"2"}}
  %begun = ((f32[32]{0}), f32[8]{0}, u32[]) async-start(%p), calls=%wrapped
  %waited = ((f32[32]{0}), f32[8]{0}, u32[]) async-update(%begun), calls=%wrapped
  %given = f32[8]{0} async-done(%waited), calls=%wrapped
  %fused = bf16[8,8]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/kernel"}
  %chosen = f32[2]{0} conditional(%i, %r, %r), branch_computations={%branch, %branch}
  %moving = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1}}
  ROOT %named = f32[] custom-call(%z), metadata={op_name="all-reduce(of nothing)"}
}
"""


def test_collectives_that_start_and_end_apart_are_fused_or_in_nested_loops_are_counted_once_each():
    found = [(c.kind, c.shapes, c.size, c.group, c.times) for c in plan.collectives(OTHER_FORMS)]
    assert found == [
        ("all-reduce", ("f32[4]",), 16, 4, 10),
        ("reduce-scatter", ("f32[8]",), 128, 4, 1),  # the bytes of all that is reduced
        ("reduce-scatter", ("bf16[32,8]",), 512, 4, 1),
        ("all-to-all", ("f32[2]",), 8, None, 1),
        ("all-to-all", ("f32[2]",), 8, None, 1),  # of each branch
        ("collective-permute", ("f32[3]",), 12, None, 1),
    ]


def test_compiled_products_are_those_of_the_formula():
    """Unrolled: a scan's body is counted once. What is not a product (GELU, softmax, the optimizer) is in the ten percent."""
    devices = parallel.make_devices(ParallelConfig(num_devices=1))
    large = SMALL.model.replace(hidden_size=256, intermediate_size=1024, vocab_size=4096)
    program = build(SMALL.replace(model=large), devices, None)
    compiled = program.train_step.lower(program.abstract_state, program.abstract_batch).compile()
    formula = flops.step_flops(program.cfg)
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
    done = run(config, "--topology", "cpu:4", "--parallel.fsdp", "2", JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert done.returncode == 0, done.stderr
    assert "4 x cpu as a mesh (data 2 x fsdp 2), 4 rows each" in done.stdout
    for name in ("parameters", "optimizer state", "activations and temporaries", "all-reduce of", "all-gather of", "FLOPs"):
        assert name in done.stdout, name


@pytest.mark.slow
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
        ("v5e:2x2x2", "v5e layouts have 2 dimensions"),
        ("cpu:0", "unknown topology 'cpu:0'"),
        ("v4:2x2", "v4 layouts have 3 dimensions"),
        ("h100:2x4", "unknown topology 'h100:2x4': known are .*h100:8"),
        ("h100:16", "a host has at most 8 GPUs"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        plan.Topology(name)


def test_what_is_missing_and_what_does_not_divide_is_said(monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu, the compiler for TPUs, is not installed: pip install 'libtpu"):
        plan.Topology("v5e:2x4").devices()
    with pytest.raises(InputError, match=r"the compiler for NVIDIA GPUs is not installed: pip install 'jax\[cuda12\]=="):
        plan.Topology("h100:8").devices()
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


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        ("RESOURCE_EXHAUSTED: ... required for HLO temporaries (22.15G) exceeds available HBM (15.75G).", 22.15),
        ("RESOURCE_EXHAUSTED: ... Used 19.64G of 15.75G hbm. Exceeded hbm capacity by 3.89G.", 19.64),
        ("RESOURCE_EXHAUSTED: for a reason of its own", None),
    ],
)
def test_the_compilers_refusal_says_what_it_needs(words, gib):
    assert plan.needed_bytes(words) == (gib and gib * GIB)


@pytest.mark.parametrize(
    ("name", "links"),
    [("v5e:1x1", 0), ("v5e:2x4", 2), ("v5e:4x16", 3), ("v6e:16x16", 4), ("v4:2x2x1", 2), ("v4:4x4x8", 6), ("h100:1", 0),
     ("h100:8", 1)],
)  # fmt: skip
def test_a_corner_of_a_slice_has_links_to_its_neighbours_and_around_a_ring(name, links):
    topology = plan.Topology(name)
    assert topology.chip.links(topology.shape) == links


def planned(cfg, name="v5e:2x4", crossing=()):
    """A plan of eight devices that nothing was compiled for."""
    devices = parallel.Devices(parallel.make_mesh(jax.devices(), cfg.parallel.fsdp, cfg.parallel.tensor))
    program = Program(cfg, devices)
    return plan.Plan(plan.Topology(name), program, 1.0, {"parameters": 40, "optimizer state": 80}, None, "", list(crossing))


def test_a_step_is_bounded_by_products_links_and_memory(monkeypatch):
    monkeypatch.setattr(plan.flops, "peak_flops", lambda kind: 1e9)
    crossing = [plan.Collective("all-reduce", ("f32[]",), 8_000_000_000, 8, 2)]
    made = planned(SMALL, crossing=crossing)
    work = flops.step_flops(SMALL)
    assert made.roofline.compute == pytest.approx(work / 8 / 1e9)
    assert made.roofline.interconnect == pytest.approx(2 * 2 * 7 / 8 * 8e9 / (2 * 50e9))
    assert made.roofline.update == pytest.approx((2 * (40 + 80) + 2 * 40) / 8.19e11)
    assert made.roofline.step == max(made.roofline.compute, made.roofline.interconnect) + made.roofline.update
    assert made.roofline.mfu == pytest.approx(made.roofline.compute / made.roofline.step)
    by_muon = planned(SMALL.replace(optim=OptimConfig(name="muon", warmup_steps=2)), crossing=crossing)
    assert by_muon.roofline.compute == pytest.approx((work / 8 + flops.muon_flops(by_muon.program.cfg, 8)) / 1e9)
    again = planned(SMALL.replace(compute=ComputeConfig(remat="full")), crossing=crossing)
    assert 1.2 < again.roofline.compute / made.roofline.compute < 4 / 3  # the layers' forward pass once more, not the head's


def test_the_report_says_what_muon_computes_and_the_moments_that_it_saves():
    rate = dict(optim=OptimConfig(name="muon", muon_iterations=3, warmup_steps=2))
    lines = dict(line.split("  ", 1) for line in _report(planned(SMALL.replace(**rate)), []).splitlines())
    d, m, layers = 64, 256, 3
    square, rectangle = 3 * 6 * d**3, 3 * (4 * d**2 * m + 2 * d**3)
    work = layers * (4 * square + 2 * rectangle)
    adam = 3 * 4 * memory.num_parameters(SMALL.model)
    muon = adam - 4 * layers * (4 * d**2 + 2 * d * m)
    share = work / flops.step_flops(SMALL)
    assert lines["Muon"].strip() == (
        f"{work:.3g} more FLOPs ({share:.1%}) orthogonalise updates; state {muon / 2**20:.1f} MiB per device, by AdamW "
        f"{adam / 2**20:.1f} MiB"
    )
    assert "Muon" not in _report(planned(SMALL), [])


def test_each_phase_is_planned_and_the_one_that_needs_the_most_memory_counts(monkeypatch):
    phases = (
        Phase(until=4, max_seq_length=64), Phase(until=5, max_seq_length=64, learning_rate_scale=0.5),
        Phase(until=9, batch_size=32), Phase(until=10, max_seq_length=32),
    )  # fmt: skip
    compiled = []

    def make(cfg, topology, phases):
        compiled.append((cfg.batch_size, cfg.data.max_seq_length, len(phases)))
        return replace(planned(cfg), needed=cfg.batch_size * cfg.data.max_seq_length * 2.0**20)

    monkeypatch.setattr(plan, "make", make)
    made = plan.make_phases(SMALL.replace(phases=phases), plan.Topology("v5e:2x4"))
    assert compiled == [(16, 64, 4), (32, 128, 4), (16, 32, 4)]
    assert plan.worst(made) is made[2][1]
    lines = _phases(made)
    assert lines[0] == "phases[0] (steps 0 to 4): 16 rows of 64 tokens, 1.00 GiB per device"
    assert lines[-1].startswith("phases[2] needs the most memory")
    short = [
        (span, replace(each, refusal="RESOURCE_EXHAUSTED") if number == 3 else each) for number, (span, each) in enumerate(made)
    ]
    assert plan.worst(short) is short[3][1]  # what does not fit counts first
    assert _phases(short)[3] == "phases[3] (steps 9 to 10): 16 rows of 32 tokens, does not fit"
    assert _phases(plan.make_phases(SMALL, plan.Topology("v5e:2x4"))) == []
    monkeypatch.undo()
    uneven = SMALL.replace(phases=(Phase(until=5, batch_size=12), Phase(until=10)))
    with pytest.raises(InputError, match=r"^phases\[0\] \(steps 0 to 5\): batch_size=12 does not divide over 8 devices"):
        plan.make_phases(uneven, plan.Topology("cpu:8"))


def test_a_gpu_has_what_jax_takes_of_its_memory_and_a_step_that_needs_more_does_not_fit():
    assert plan.CHIPS["h100"].hbm == 0.75 * 84_942_979_072
    made = planned(SMALL, "h100:8")
    assert replace(made, needed=60e9).fits
    assert not replace(made, needed=64e9).fits  # the compiler refuses nothing
    assert not replace(made, needed=None, refusal="RESOURCE_EXHAUSTED").fits
    assert replace(planned(SMALL, "cpu:8"), needed=1e15).fits


LARGE = TrainConfig(
    batch_size=256, data=DataConfig(max_seq_length=512),
    model=BertConfig.preset("large"), compute=ComputeConfig(dtype="bfloat16", remat="none", scan_layers=True),
)  # fmt: skip


def test_what_would_fit_is_the_least_change_of_each_kind():
    remedies = dict(plan.remedies(planned(LARGE)))
    assert [option.split()[0] for option in remedies] == ["--compute.remat", "--gradient-accumulation-steps", "--batch-size"]
    assert all(need <= memory.USABLE * 15.75 * GIB for need in remedies.values())
    assert "--compute.remat full" in remedies  # dots alone is too much for 32 rows of BERT-large
    share = memory.DeviceShare.of_run(LARGE.replace(gradient_accumulation_steps=4), "cpu", 8, 1, 1)
    assert memory.total_bytes(LARGE.model, LARGE.compute, share) > memory.USABLE * 15.75 * GIB
    assert remedies.keys() >= {"--gradient-accumulation-steps 8"}


def test_where_no_change_fits_by_itself_all_is_recomputed_too():
    larger = LARGE.replace(model=LARGE.model.replace(num_hidden_layers=72))
    remedies = plan.remedies(planned(larger))
    assert remedies
    assert all(option.startswith("--compute.remat full --parallel.fsdp") for option, _ in remedies)


BASE, HALF = BertConfig.preset("base"), ComputeConfig(dtype="bfloat16")


@pytest.mark.parametrize(
    ("rows", "length", "slots", "hbm", "remat"),
    [(8, 128, 20, 15.75, "none"), (32, 512, 77, 15.75, "dots"), (96, 512, 77, 15.75, "full"), (32, 512, 77, 95.74, "none"),
     (1, 8, 2, None, "none")],
)  # fmt: skip
def test_the_least_is_recomputed_that_fits(rows, length, slots, hbm, remat):
    share = memory.DeviceShare(rows, length, slots, "tpu")
    chosen = memory.choose_recomputation(BASE, HALF, share, hbm and int(hbm * GIB))
    assert (chosen.remat, chosen.scan_layers) == (remat, True)
    asked = memory.choose_recomputation(BASE, HALF.replace(remat="full", scan_layers=False), share, 10**15)
    assert (asked.remat, asked.scan_layers) == ("full", False)


def test_cutting_parameters_and_recomputing_need_less():
    share = memory.DeviceShare(8, 512, 77, "cpu")
    ways = HALF.replace(scan_layers=True)
    sizes = [memory.total_bytes(BASE, ways.replace(remat=how), share) for how in ("none", "dots", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert memory.state_bytes(BASE, replace(share, fsdp=8)) == memory.state_bytes(BASE, share) / 8
    assert memory.num_parameters(BASE) == pytest.approx(110.1e6, rel=0.01)  # Devlin et al., 2018, section 3


def test_a_kernel_for_attention_keeps_no_scores():
    share = memory.DeviceShare(16, 512, 77, "tpu")
    dropped, whole = (BASE.replace(attention_probs_dropout_prob=rate) for rate in (0.1, 0.0))
    how = HALF.replace(scan_layers=True, remat="none")
    # as compiled for v5e: 7.91 and 4.99 GiB
    assert memory.total_bytes(dropped, how, share) / GIB == pytest.approx(7.91, rel=0.06)
    assert memory.total_bytes(whole, how, share) / GIB == pytest.approx(4.99, rel=0.06)
    short = replace(share, length=128, slots=20)  # too short for the kernel
    assert memory.total_bytes(whole, how, short) == memory.total_bytes(dropped, how, short)


@pytest.mark.parametrize(
    ("size", "rows", "length", "remat", "gib"),  # total as compiled for v5e, libtpu 0.0.42
    [("base", 8, 512, "none", 4.78), ("base", 16, 512, "none", 7.91), ("base", 32, 512, "none", 14.21),
     ("base", 32, 512, "dots", 5.94), ("base", 32, 512, "full", 3.15), ("base", 64, 128, "none", 5.15),
     ("large", 8, 512, "dots", 7.77)],
)  # fmt: skip
def test_estimates_are_near_what_the_compiler_needs(size, rows, length, remat, gib):
    how = ComputeConfig(dtype="bfloat16", remat=remat, scan_layers=True)
    share = memory.DeviceShare(rows, length, {512: 77, 128: 20}[length], "tpu")
    assert 0.98 < memory.total_bytes(BertConfig.preset(size), how, share) / GIB / gib < 1.1


@pytest.mark.parametrize(
    ("size", "rows", "rate", "gib"),  # total as compiled for h100:8, CUDA plugin of jax 0.10.2
    [("base", 32, 0.1, 13.87), ("base", 32, 0.0, 6.85), ("large", 8, 0.0, 7.65)],
)
def test_estimates_for_gpus_are_not_below_what_the_compiler_needs(size, rows, rate, gib):
    how = ComputeConfig(dtype="bfloat16", remat="none", scan_layers=False)
    share, model = memory.DeviceShare(rows, 512, 77, "gpu"), BertConfig.preset(size, attention_probs_dropout_prob=rate)
    assert 1.0 < memory.total_bytes(model, how, share) / GIB / gib < 1.2


@pytest.mark.tpu_compile
def test_a_run_is_planned_for_a_tpu_and_what_does_not_fit_says_what_would():
    pytest.importorskip("libtpu")
    base = ["configs/bert_base.py", "--data.max-seq-length", "512", "--batch-size", "256"]
    fits = run(*base, "--topology", "v5e:2x4")
    assert fits.returncode == 0, fits.stderr
    assert "yes, " in fits.stdout
    assert "recomputed: dots" in fits.stdout
    refused = run(*base[:-1], "384", "--topology", "v5e:2x4", "--compute.remat", "none")
    assert "no, " in refused.stdout
    assert "the compiler: RESOURCE_EXHAUSTED" in refused.stdout
    assert "--compute.remat dots" in refused.stdout


GPU = Path(os.environ.get("BERT_JAX_CUDA", "/nowhere"))


def run_for_gpus(*argv):
    """`run` with the CUDA plugin: installed, or in the folder that BERT_JAX_CUDA names."""
    if not GPU.is_dir() and find_spec("jax_cuda12_plugin") is None:
        pytest.skip("needs the CUDA plugin of jax: see docs/devices.md")
    done = run(*argv, PYTHONPATH=os.pathsep.join([str(ROOT), str(GPU)]))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.gpu_compile
def test_a_run_is_planned_for_gpus_and_what_does_not_fit_says_what_would():
    base = ["configs/bert_base.py", "--data.max-seq-length", "512", "--compute.scan-layers", "True", "--batch-size"]
    fits = run_for_gpus(*base, "256", "--topology", "h100:8", "--model.attention-probs-dropout-prob", "0")
    assert "attention by cudnn (on gpu)" in fits
    assert "yes, " in fits
    assert "all-reduce of" in fits
    refused = run_for_gpus(*base, "2048", "--topology", "h100:8", "--compute.remat", "none")
    assert "so 12 x 512 x 512 probabilities are kept" in refused
    assert "no, " in refused
    assert "--compute.remat dots" in refused

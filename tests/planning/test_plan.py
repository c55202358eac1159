"""`unitoken plan`: reading compiled programs, naming slices, and whole plans, for a TPU where libtpu is."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.helpers.tiny_model import CONFIG as MODEL
from unitoken_jax.cli import main
from unitoken_jax.config import Config, MeshConfig, to_dict
from unitoken_jax.model import flops
from unitoken_jax.model.init import abstract_params
from unitoken_jax.model.sharding import make_mesh
from unitoken_jax.planning import cost, hlo, search, topology
from unitoken_jax.planning.estimate import Time
from unitoken_jax.planning.memory import Memory
from unitoken_jax.planning.plan import CompiledStep, Plan
from unitoken_jax.train.optimizer import stage_groups

# A step on a TPU, as its compiler writes it: a loop of 3 layers whose body is unrolled once (counter + 2, up
# to 6), a fused all-reduce that is a reduce-scatter, an asynchronous all-gather, VMEM as S(1).
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fused_product (p0: bf16[64,128], p1: bf16[3,128,256], p2: s32[]) -> bf16[64,256] {
  %p0 = bf16[64,128]{1,0} parameter(0)
  %p1 = bf16[3,128,256]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %slice = bf16[1,128,256]{2,1,0} dynamic-slice(%p1, %p2), dynamic_slice_sizes={1,128,256}
  %flat = bf16[128,256]{1,0} bitcast(%slice)
  ROOT %product = bf16[64,256]{1,0} convolution(%p0, %flat), dim_labels=bf_io->bf, \
metadata={op_name="jit(step)/jvp(hidden)/decoder/layers/dot_general"}
}

%fused_scatter (q0: bf16[256,64]) -> bf16[64,64] {
  %q0 = bf16[256,64]{1,0} parameter(0)
  %reduced = bf16[256,64]{1,0} all-reduce(%q0), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %own = bf16[64,64]{1,0} dynamic-slice(%reduced, %zero, %zero), dynamic_slice_sizes={64,64}
}

%body (carry: (s32[], bf16[64,128], bf16[3,128,256])) -> (s32[], bf16[64,128], bf16[3,128,256]) {
  %carry = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[3,128,256]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %h = bf16[64,128]{1,0} get-tuple-element(%carry), index=1
  %w = bf16[3,128,256]{2,1,0} get-tuple-element(%carry), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %gather = (bf16[16,128]{1,0}, bf16[64,128]{1,0:T(8,128)S(1)}) all-gather-start(%h16), channel_id=1, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %h16 = bf16[16,128]{1,0} bitcast(%h)
  %whole = bf16[64,128]{1,0:T(8,128)S(1)} all-gather-done(%gather)
  %fusion.1 = bf16[64,256]{1,0} fusion(%whole, %w, %i), kind=kOutput, calls=%fused_product, \
backend_config={"estimated_cycles":"1000"}
  ROOT %out = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[3,128,256]{2,1,0}) tuple(%next, %h, %w)
}

%condition (carry: (s32[], bf16[64,128], bf16[3,128,256])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[3,128,256]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %six = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %six), direction=LT
}

ENTRY %main (a: bf16[64,128], b: bf16[3,128,256], g: bf16[256,64]) -> bf16[64,64] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = bf16[3,128,256]{2,1,0} parameter(1)
  %g = bf16[256,64]{1,0} parameter(2)
  %start = s32[]{:T(128)} constant(0)
  %tuple = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[3,128,256]{2,1,0}) tuple(%start, %a, %b)
  %while = (s32[]{:T(128)}, bf16[64,128]{1,0}, bf16[3,128,256]{2,1,0}) while(%tuple), condition=%condition, \
body=%body
  %total = f32[1024]{0} all-reduce(%vector), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %kernel.7 = bf16[64,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  %vector = f32[1024]{0} constant({...})
  ROOT %result = bf16[64,64]{1,0} fusion(%g), kind=kLoop, calls=%fused_scatter, \
backend_config={"estimated_cycles":"9223372036854775807"}
}
"""


def test_what_a_program_does():
    found = cost.count_cost(PROGRAM, devices=8)
    assert found.loops == [3]
    assert found.flops == {"decoder": 3 * 2 * 64 * 128 * 256}
    assert found.cycles == {"rest": 3 * 1000}
    assert found.kernels == {"kernel": 1}
    gather = cost.Collective("all-gather", 4, 1, 3, 3 * 64 * 128 * 2, 3 * 64 * 128 * 2 * 3 / 4, 0)
    reduce = cost.Collective("all-reduce", 8, 1, 1, 4096, 4096 * 2 * 7 / 8, 4096 * 2 * 7 / 8)
    scatter = cost.Collective("reduce-scatter", 4, 1, 1, 256 * 64 * 2, 256 * 64 * 2 * 3 / 4, 0)
    assert found.collectives == [gather, reduce, scatter]
    # The fusion reads one layer's weights of three, and its activations from VMEM; 4 bytes are its number.
    body = hlo.parse(PROGRAM).computations["body"]
    assert (
        cost.instruction_traffic(body["fusion.1"], body, hlo.parse(PROGRAM)) == 2 * (128 * 256 + 64 * 256) + 4
    )


def test_one_trip_of_a_loop():
    trip = cost.count_cost(PROGRAM, devices=8, start="body")
    assert trip.flops == {"decoder": 2 * 64 * 128 * 256}
    assert 0 < trip.traffic < cost.count_cost(PROGRAM, devices=8).traffic / 3
    fixed = PROGRAM.replace("dynamic-slice(%p1, %p2), dynamic_slice_sizes", "slice(%p1), sizes")
    assert cost.count_cost(fixed, devices=8, start="body").traffic == trip.traffic - 4  # it reads no number


def test_no_program():
    with pytest.raises(ValueError, match="no HLO program"):
        hlo.parse("HloModule nothing\n")


def test_a_compiled_scan_counts_every_trip():
    """Forward and backward of 5 layers and a convolution, and a loop whose length is data."""

    def loss(weights, kernel, x, trips):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
        image = jax.lax.conv(x.reshape(1, 1, 8, 32), kernel, (1, 1), "VALID")
        square = jax.lax.stop_gradient(x[:, :8])
        return jnp.sum(image**2) + jnp.sum(jax.lax.fori_loop(0, trips, lambda _, y: y @ y, square))

    shapes = (5, 32, 32), (1, 1, 3, 3), (8, 32)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    step = jax.jit(jax.value_and_grad(loss, (0, 2)))
    compiled = step.lower(*arguments, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    found = cost.count_cost(compiled.as_text(), 1, unknown_trips=7)
    layers, image, squares = 3 * 5 * 2 * 8 * 32 * 32, 2 * 2 * 6 * 30 * 9, 7 * 2 * 8**3
    assert found.flops == {"rest": layers + image + squares}
    assert found.traffic > 3 * 5 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("name", "chips", "wrap"),
    [
        ("v5e:2x4", 8, (False, False)),
        ("v6e:8x16", 128, (False, True)),
        ("v5p:2x2x1", 4, (False,) * 3),
        ("v5p:4x4x12", 192, (True,) * 3),
    ],
)
def test_slices(name, chips, wrap):
    found = topology.parse(name)
    assert (found.chips, found.wrap) == (chips, wrap)
    assert flops.device(found.chip).axes == len(found.sides)


@pytest.mark.parametrize("name", ["v5e", "v5e:3x5", "v5p:4x4", "v5p:0x4x4", "h100:2x2", "v5e:16x16x1"])
def test_an_unknown_slice_lists_those_there_are(name):
    with pytest.raises(ValueError, match=rf"no TPU slice is called '{name}'.*v5e: 1x1, 2x2.*'local'"):
        topology.parse(name)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("v5p:4x4x4", MeshConfig(tensor=2)),
        ("v6e:16x16", MeshConfig(data=2)),
        ("v5e:4x4", MeshConfig(tensor=2)),
    ],
)
def test_a_mesh_may_split_an_axis_of_a_slice(name, mesh):
    pytest.importorskip("libtpu")
    devices = topology.devices(topology.parse(name))
    assert make_mesh(mesh, devices).size == len(devices)


def test_a_tpu_needs_its_compiler(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install libtpu"):
        topology.devices(topology.parse("v5e:2x2"))


CONFIG = {
    "model": to_dict(MODEL),
    "data": {"row_length": 64, "row_crops": 2, "row_images": 1, "rows": 2},
    "optimizer": {"groups": [vars(group) for group in stage_groups(2)]},
    "train": {"loss_chunk": 16, "dtype": "float32"},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(f"def get_config(_=None):\n    return {CONFIG!r}\n")
    return str(path)


# Programs read these.
KEYS = {"topology", "device", "devices", "mesh", "rows", "row_length", "row_crops", "row_images", "remat"}
KEYS |= {"trained", "memory", "fits", "flops", "kernel_flops", "cost", "time", "error", "compile_seconds"}
KEYS |= {"versions"}
TIMED = {"tokens_per_second_per_device", "mfu", "mfu_ceiling"}  # where the device's speed is known


@pytest.mark.slow
def test_plans_for_this_machine(config, tmp_path, capsys, monkeypatch):
    """Sizes and FLOPs are what they must be; where memory is too small for them, the exit code is 1."""
    monkeypatch.setattr("unitoken_jax.planning.plan.memory_limit", lambda *_: 1000.0)
    out = tmp_path / "plan.json"
    assert (
        main.main(["plan", "--config", config, "--json", str(out), "--config.train.scan_layers=False"]) == 1
    )
    assert "DOES NOT FIT" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["plans"]
    assert set(found) == KEYS | TIMED - {
        "mfu",
        "mfu_ceiling",
        "tokens_per_second_per_device",
    }  # of no known device
    assert not found["fits"]
    assert found["trained"] == ["adapter", "decoder", "siglip"]
    memory = found["memory"]
    sizes = jax.tree.map(lambda leaf: 4 * leaf.size, nn.meta.unbox(abstract_params(MODEL)))
    vqgan = sum(jax.tree.leaves(sizes["vqgan"]))
    embeddings = sum(jax.tree.leaves([sizes["siglip"][name] for name in ("patch_embed", "position_embed")]))
    assert memory["frozen"] == vqgan + embeddings
    assert memory["parameters"] == sum(jax.tree.leaves(sizes)) - vqgan - embeddings
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=8)
    assert memory["batch"] == 2 * (6 * 64 * 4 + 3 * 16**2 * 3)
    assert memory["parameters"] < memory["peak"] < memory["temporaries"] + 4 * memory["parameters"]
    # A full mask instead of a causal one, and every layer once more.
    compiled = found["cost"]["flops"]
    assert set(compiled) == {"decoder", "siglip", "adapter", "vq", "rest"}
    assert compiled["adapter"] == found["flops"]["adapter"]  # no layers in it, so nothing is computed twice
    assert 1 < sum(compiled.values()) / sum(found["flops"].values()) < 2


@pytest.mark.slow
def test_plans_for_a_tpu(config, tmp_path, capsys):
    pytest.importorskip("libtpu")
    out = tmp_path / "plan.json"
    arguments = ["--topology", "v5e:2x4", "--json", str(out), "--config.mesh.tensor=2"]
    assert main.main(["plan", "--config", config, "--config.data.rows=8", *arguments]) == 0
    text = capsys.readouterr().out
    assert "8 x TPU v5 lite, mesh data 1 x fsdp 4 x tensor 2" in text
    assert "of 15.75 GiB a device: fits" in text
    (found,) = json.loads(out.read_text())["plans"]
    assert set(found) == KEYS | TIMED
    assert {"all-gather", "all-reduce"} <= {one["kind"] for one in found["cost"]["collectives"]}
    assert found["memory"]["largest"]
    assert 0 < found["mfu"] < found["mfu_ceiling"] < 1
    assert found["time"]["limit"] <= found["time"]["estimate"]
    # What a slice has of the state is its share of it.
    assert found["memory"]["parameters"] < found["memory"]["peak"] < found["memory"]["limit"]

    large = ["--config.model.decoder.width=4096", "--config.model.decoder.mlp=65536", "--config.data.rows=8"]
    large += ["--config.data.row_length=128"]
    assert (
        main.main(["plan", "--config", config, "--config.model.decoder.depth=200", *large, *arguments]) == 1
    )
    assert "the compiler: RESOURCE_EXHAUSTED" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["plans"]
    assert found["memory"]["peak"] > found["memory"]["limit"]

    assert main.main(["plan", "--config", config, "--config.data.rows=6", *arguments]) == 2
    assert "data.rows is 6, and the mesh splits rows 4 ways" in capsys.readouterr().err


def test_a_search_keeps_the_fastest_policy_that_fits_and_ranks():
    """Memory grows with rows and with what is kept, and is halved by each doubling of tensor."""
    tried = []

    def compile(config, name):
        mesh, remat = dataclasses.asdict(config.mesh), config.train.remat
        rows = config.data.rows // (mesh["data"] * mesh["fsdp"])
        kept = 4 - search.REMAT.index(remat)
        tried.append((mesh["tensor"], rows, remat))
        memory = Memory(limit=4.0, peak=rows * kept / mesh["tensor"] + 1.5)
        seconds = rows / kept * mesh["tensor"]
        time = Time(seconds, 0, 0, seconds, 0, 0) if memory.fits else None
        step = CompiledStep(cost.Cost(), 0, time, 0)
        return Plan(name, "TPU v5 lite", 8, mesh, rows, 1, 0, 0, remat, [], memory, {}, compiled=step)

    said = []
    found = search.search(Config(model=MODEL), "v5e:2x4", said.append, compile)
    assert len(said) == len(found)
    assert tried == [
        *((1, 1, remat) for remat in ("none", "dots", "qkv")),
        *((1, 2, remat) for remat in ("none", "dots", "qkv", "full")),
        *((1, 4, remat) for remat in ("none", "dots", "qkv", "full")),  # none fits
        (2, 1, "none"),
        *((2, 2, remat) for remat in ("none", "dots", "qkv")),
        *((2, 4, remat) for remat in ("none", "dots", "qkv", "full")),
    ]
    assert [one.memory.fits for one in found] == [True] * 5 + [False] * 14
    speeds = [one.tokens_per_second(one.time.estimate) for one in found[:5]]
    assert speeds == sorted(speeds, reverse=True)


def test_meshes_split_siglip():
    """1152 divides by 128 and not by 256."""
    found = search.meshes(Config(), 256)
    assert [(mesh.data, mesh.fsdp, mesh.tensor) for mesh in found] == [
        (2, 128, 1),
        (1, 128, 2),
        (1, 64, 4),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9:2x2"], "no TPU slice is called 'v9:2x2'"),
        (["--json", "nowhere/plan.json"], "--json nowhere/plan.json: the folder nowhere does not exist"),
        (["--config.mesh.data=3"], "does not fit 1 devices"),
        (["--config.optimizer.groups=()"], "trains no parameter"),
    ],
)
def test_mistakes(config, capsys, arguments, message):
    assert main.main(["plan", "--config", config, *arguments]) == 2
    assert message in capsys.readouterr().err

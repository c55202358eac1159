"""Plans of the 7B and 34B models on TPU slices, for benchmarks/RESULTS.md: what fits, and what it takes.

    python benchmarks/pod_plans.py --out plans/ [--only 7b-stage2-v5e]

Each case is one `unitoken plan`, in a process of its own; its report and JSON stay in --out, and a case that
is there already is not compiled again. A case takes the compiler one to five minutes. Needs libtpu, no TPU.
"""

import argparse
import json
import pathlib
import subprocess
import sys

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
GIB = 2**30

# Batches of about 128 samples, the paper's, and larger ones. A row of 5,120 tokens holds two samples of stage
# II's mixture; one of 5,376 holds a five-crop caption of stage I, its suffix 4,096 for blocks of 1,024.
SMALL = {
    1: {"data.row_length": 5376, "data.row_prefix": 1280, "data.row_crops": 5, "data.row_images": 1},
    2: {"data.row_length": 5120, "data.row_crops": 5, "data.row_images": 4},
}
SMALL_ROWS = {1: 128, 2: 64}
# SigLIP's width of 1152 divides by 128, not by 256: with fsdp 256, every chip would hold all of SigLIP.
V5E = {"mesh.data": 2, "mesh.fsdp": 128}

# Name -> (config, slice, overrides).
CASES: dict[str, tuple[str, str, dict]] = {}
for _stage, _rows in SMALL_ROWS.items():
    _v5e = {"mesh.fsdp": _rows, "mesh.tensor": 256 // _rows}
    for _slice, _mesh, _large in (
        ("v5e:16x16", _v5e, V5E | {"data.rows": 256}),
        ("v5p:4x4x4", {}, {"data.rows": 128}),
        ("v6e:8x8", {}, {"data.rows": 64}),
    ):
        _name = f"7b-stage{_stage}-{_slice.partition(':')[0]}"
        CASES[_name] = f"stage{_stage}.py", _slice, SMALL[_stage] | {"data.rows": _rows} | _mesh
        CASES[f"{_name}-large"] = f"stage{_stage}.py", _slice, _large
CASES["34b-stage2-v5p"] = "stage2.py:unitoken_34b", "v5p:4x4x8", SMALL[2] | {"data.rows": 128}
CASES["34b-stage2-v5p-large"] = "stage2.py:unitoken_34b", "v5p:4x4x8", {"data.rows": 128}

# A decoder of the same size in MaxText 0.2.4 (llama2-7b, vocabulary 65,536, full remat), compiled by the same
# libtpu 0.0.52: peak GiB a chip. Ours without images, but with the ViT's state.
_TEXT = {"data.codes": "offline", "data.row_crops": 0}
PEER_GIB = {
    "text-v5e-4096": ("v5e:16x16", 4096, 256, 2.98),
    "text-v5e-8192": ("v5e:16x16", 8192, 256, 4.46),
    "text-v5p-4096x4": ("v5p:4x4x4", 4096, 256, 10.04),
    "text-v6e-4096x2": ("v6e:16x16", 4096, 512, 4.55),
}
for _name, (_slice, _length, _rows, _) in PEER_GIB.items():
    _mesh = {} if _slice == "v5p:4x4x4" else V5E
    CASES[_name] = "stage2.py", _slice, _TEXT | _mesh | {"data.row_length": _length, "data.rows": _rows}


def run(name: str, out: pathlib.Path) -> dict:
    """The case's plan as `unitoken plan --json` writes it."""
    config, topology, overrides = CASES[name]
    file = out / f"{name}.json"
    if not file.exists():
        command = [sys.executable, "-m", "unitoken_jax", "plan", "--config", f"{CONFIGS}/{config}"]
        command += ["--topology", topology, "--json", str(file)]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        process = subprocess.run(command, capture_output=True, text=True)
        (out / f"{name}.txt").write_text(f"{' '.join(command[1:])}\n\n{process.stdout}{process.stderr}")
        if not file.exists():
            raise RuntimeError(f"{name}: {process.stderr}")
    return json.loads(file.read_text())["plans"][0]


COLUMNS = ("case", "slice", "data x fsdp x tensor", "rows x tokens", "remat", "state, GiB", "peak, GiB", "of")
COLUMNS += ("fits", "step, s", "tokens/s a chip", "MFU")


def row(name: str, plan: dict) -> str:
    """A line of a Markdown table."""
    memory, mesh = plan["memory"], plan["mesh"]
    state = memory["parameters"] + memory["frozen"] + memory["optimizer"]
    cells = [name, plan["topology"], " x ".join(str(mesh[axis]) for axis in ("data", "fsdp", "tensor"))]
    cells += [f"{plan['rows']} x {plan['row_length']}", plan["remat"], f"{state / GIB:.2f}"]
    cells += [f"{memory['peak'] / GIB:.2f}", f"{memory['limit'] / GIB:.2f}", "yes" if plan["fits"] else "no"]
    if plan["time"]:
        cells += [f"{plan['time']['estimate']:.2f}", f"{plan['tokens_per_second_per_device']:,.0f}"]
        cells += [f"{plan['mfu']:.0%} of at most {plan['mfu_ceiling']:.0%}"]
    else:
        cells += ["", "", ""]
    if name in PEER_GIB:
        cells[0] += f" (peer: {PEER_GIB[name][-1]} GiB)"
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", action="append", choices=CASES, help="may be given several times")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in arguments.only or CASES:
        print(row(name, run(name, arguments.out)), flush=True)


if __name__ == "__main__":
    main()

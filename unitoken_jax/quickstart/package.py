"""Puts the models of a finished quickstart from random weights into the package, in float16.

python -m unitoken_jax.quickstart.package --run quickstart --out unitoken_jax/pretrained
"""

import argparse
import json
import os
import pathlib
from typing import Any

from unitoken_jax.scenes import MANIFEST
from unitoken_jax.storage.atomic import atomic_folder
from unitoken_jax.storage.paths import absolute

MODELS = {"base": "base/model", "finished": "model"}  # where a run has what the package calls so
MAX_BYTES = 20 * 10**6  # of both together
# What a run's summary says besides scores.
_COST = ("minutes", "minutes_by_step", "peak_gib", "settings", "seeds", "versions", "cpu_count")
_LICENCES = (
    "Apache-2.0; trained on drawings with the UCI optical digits (E. Alpaydin, C. Kaynak; CC BY 4.0)",
)


def package_models(run: str | os.PathLike, out: str | os.PathLike, max_bytes: int = MAX_BYTES) -> list[str]:
    """Writes `base` and `finished` of the quickstart in directory `run` to the folder `out`, in float16, in
    place of those that are there; lines that say what was written.

    Their manifest.json says how they were made: recipe, settings, minutes, versions, date, and the scores of
    the run's summary. Nothing is replaced before both are complete and have at most `max_bytes` together.
    Raises FileNotFoundError where the run is not finished, ValueError for models that are too large.
    """
    run, out = absolute(run), absolute(out)
    settings, summary = (_read_object(run / name) for name in ("settings.json", "summary.json"))
    scores = {name: value for name, value in summary.items() if name not in _COST}
    lines = []
    with (
        atomic_folder(out / "base", replace=True) as base,
        atomic_folder(out / "finished", replace=True) as finished,
    ):
        for folder, source in zip((base, finished), MODELS.values()):
            made = _provenance(settings, summary) | ({"scores": scores} if folder == finished else {})
            lines += _write_model(run / source, folder, made)
        sizes = [_size(folder) for folder in (base, finished)]
        if sum(sizes) > max_bytes:
            raise ValueError(
                f"the models of {run} take {sum(sizes) / 1e6:.1f} MB ({sizes[0] / 1e6:.1f} the base, "
                f"{sizes[1] / 1e6:.1f} the finished one); expected at most {max_bytes / 1e6:.1f} MB: nothing "
                f"in {out} was replaced"
            )
    written = [f"{out / name}: {size / 1e6:.2f} MB" for name, size in zip(MODELS, sizes)]
    return [*written, *lines]


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: name the directory of a finished `unitoken quickstart`"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _provenance(settings: dict, summary: dict) -> dict[str, Any]:
    """What both manifests say of the run."""
    return {
        "recipe": "unitoken_jax/quickstart/recipe.py",
        **MANIFEST,
        "settings": {name: value for name, value in settings.items() if name != "model"},
        "minutes": round(summary["minutes"], 1),
        "cpu_count": summary["cpu_count"],
        "versions": summary["versions"],
        "licences": list(_LICENCES),
    }


def _write_model(source: pathlib.Path, folder: pathlib.Path, made: dict[str, Any]) -> list[str]:
    """Writes the model directory `source` to `folder` in float16; lines on what stays in float32."""
    from unitoken_jax.checkpoint.half_precision import to_float16
    from unitoken_jax.checkpoint.model_directory import load_model, save_model

    model = load_model(source)
    params, kept = to_float16(model.params)
    notes = [f"in float32, which float16 would change: {path}" for path in kept]
    made = made | {"created": model.manifest["created"], "notes": notes}
    save_model(folder, model.config, params, model.tokenizer, made)
    return [f"{source}: {note}" for note in notes]


def _size(folder: pathlib.Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str] | None = None) -> None:
    """The command line: prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, metavar="DIR", help="of the quickstart")
    parser.add_argument("--out", required=True, metavar="DIR", help="unitoken_jax/pretrained of a clone")
    arguments = parser.parse_args(argv)
    try:
        print("\n".join(package_models(arguments.run, arguments.out)))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()

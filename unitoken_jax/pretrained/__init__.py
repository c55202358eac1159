"""The small models that travel with the package, and which model is meant where none is named.

    base/       VQ tokenizer, SigLIP and decoder after the runs from random weights: what Lumina-mGPT and
                SigLIP are to the paper
    finished/   the same after stages I to III

Both are ordinary model directories, in float16. `python -m unitoken_jax.quickstart.package` writes them, and
each manifest.json says how it was made.
"""

import os
import pathlib

FOLDER = pathlib.Path(__file__).parent
NAMES = ("base", "finished")
QUICKSTART_MODEL = "quickstart/model"  # what `unitoken quickstart` leaves in the current folder
DEFAULT_MODEL = f"{QUICKSTART_MODEL} where there is one, else the package's own"  # as --help says it


def model_path(name: str = "finished") -> pathlib.Path:
    """The package's model directory `name`, of NAMES.

    Raises ValueError for another name, FileNotFoundError where the package was installed without it.
    """
    if name not in NAMES:
        raise ValueError(f"the package has no model {name!r}; it has {', '.join(NAMES)}")
    path = FOLDER / name
    if not (path / "manifest.json").is_file():
        raise FileNotFoundError(
            f"unitoken_jax was installed without its model {name!r} ({path} is not complete): install it "
            "again from a wheel, an sdist or a clone"
        )
    return path


def default_model() -> str:
    """The model directory that is meant where none is named: that of a quickstart in the current folder, else
    the package's finished one. FileNotFoundError without either."""
    if os.path.isdir(QUICKSTART_MODEL):
        return QUICKSTART_MODEL
    try:
        return str(model_path())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no model was named, there is no {QUICKSTART_MODEL} here, and {error}; or name a model "
            "directory, or run `unitoken quickstart` in this folder first"
        ) from error

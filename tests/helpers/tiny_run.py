"""A whole training run of the tiny model in processes of its own, as `unitoken train` would do it."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

from tests.helpers.tiny_model import CONFIG, noise, tiny_params, tiny_tokenizer
from unitoken_jax.checkpoint.model_directory import save_model
from unitoken_jax.config import (
    Config,
    DataConfig,
    OptimizerConfig,
    ParameterGroup,
    SourceConfig,
    TrainConfig,
    to_dict,
)


def write_run(folder: pathlib.Path, **train) -> Config:
    """Data, a model to start from and config.py in `folder`; the config."""
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(4):
        noise(i).save(folder / f"{i}.png")
        for question, answer in (
            ("<|image|>what is this ?", "a red circle"),
            (f"{('one', 'two', 'three')[i % 3]} red circle", "<|image|>"),
        ):
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            lines.append(json.dumps({"image": f"{i}.png", "conversations": turns}) + "\n")
    (folder / "conversations.jsonl").write_text("".join(lines))
    save_model(folder / "start", CONFIG, tiny_params(), tiny_tokenizer())
    settings = {"dtype": "float32", "remat": "none", "loss_chunk": 16, "init_from": str(folder / "start")}
    config = Config(
        model=dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, dropout=0.1)),
        data=DataConfig(
            sources=(SourceConfig(path=str(folder / "conversations.jsonl")),),
            row_length=64,
            row_crops=6,
            row_images=2,
            rows=4,
        ),
        optimizer=OptimizerConfig(groups=(ParameterGroup("siglip|adapter|decoder", 1e-3),)),
        train=TrainConfig(**settings | train),
    )
    (folder / "config.py").write_text(f"def get_config():\n    return {to_dict(config)!r}\n")
    return config


def launch(
    command: list[str],
    log: pathlib.Path,
    processes: int = 1,
    devices: int = 1,
    own_session: bool = False,
    **variables: str,
):
    """`python command` in one process or several, of `devices` CPU devices each; they write to log.I.log.

    With `own_session` each leads a group of its own, which a signal can be sent to.
    """
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        coordinator = f"localhost:{sock.getsockname()[1]}"
    environ = os.environ | variables
    environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    environ["UNITOKEN_CPU_DEVICES"] = str(devices)
    running = []
    for index in range(processes):
        if processes > 1:
            environ |= {"UNITOKEN_COORDINATOR": coordinator, "UNITOKEN_PROCESSES": str(processes)}
            environ["UNITOKEN_PROCESS"] = str(index)
        with open(f"{log}.{index}.log", "w") as out:
            running.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    env=environ,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=own_session,
                )
            )
    return running


def start(folder: pathlib.Path, workdir, processes=1, devices=1, *more: str, log=None, **variables):
    """`unitoken train ... more` of what `write_run` left in `folder`, launched.

    `log` and `variables` as in `launch`; `log` is beside `workdir` where not given.
    """
    train = ["-m", "unitoken_jax", "train", "--config", str(folder / "config.py")]
    train += ["--workdir", str(workdir), *more]
    return launch(train, log or workdir, processes, devices, **variables)


def log_of(workdir, process: int = 0) -> str:
    """What a process that `start` began has written, for a failing assertion to show."""
    return pathlib.Path(f"{workdir}.{process}.log").read_text()

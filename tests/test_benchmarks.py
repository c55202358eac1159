"""The benchmarks that have a small form run."""

import importlib.util
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parity
@pytest.mark.slow
def test_all_sides_of_generate_vs_transformers_choose_the_same_ids(capsys):
    pytest.importorskip("transformers.models.chameleon", reason="needs the parity extra")
    path = BENCHMARKS / "generate_vs_transformers.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--small", "--speculate", "3"])
    printed = capsys.readouterr().out
    assert printed.count("the first 22 of 22 ids are ours") == 2
    assert "speculation: 22 of 22 ids are plain decoding's" in printed

"""The folder that `peft` keeps a LoRA adapter in, read without torch.

    adapter_config.json          rank, alpha, which linear layers have a pair, which modules are kept whole
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight [r, in], .lora_B.weight [out, r], and
                                 base_model.model.<module>.weight of modules kept whole; or adapter_model.bin
    unitoken.safetensors         beside them, of `export`: what `transformers`' Chameleon has no module for
                                 (SigLIP, the MLP adapter), named in the same way

`peft` passes the last one over. adapter_config.json says that there is one, in a key that `peft` keeps when
it loads the folder and saves it again: {"auto_mapping": {"unitoken": {"file", "parameters", "base"}}}.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from unitoken_jax.convert.torch.readers import read_file
from unitoken_jax.convert.torch.report import ConversionError, ProblemCollector, Tensor
from unitoken_jax.convert.torch.settings import SettingsTable

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
UNITOKEN_WEIGHTS = "unitoken.safetensors"
PREFIX = "base_model.model."  # Before every name; some tools leave it out.
NO_TARGETS = "dummy-target-modules"  # What `peft` takes for no pair at all, where an empty list is an error.
_ALL_LINEAR = "all-linear"
# What `peft` saves whole without being told, where a vocabulary has grown.
_SAVED_UNASKED = ("model.embed_tokens", "lm_head")

# Of `peft` 0.19 (LoraConfig): keys whose other values change what is computed, the base model included.
_FIXED: Mapping[str, tuple] = {
    "alora_invocation_tokens": ([],),
    "bias": ("none",),
    "ensure_weight_tying": (False,),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, "eva", "gaussian", "orthogonal"),
    "layers_to_transform": ([],),
    "lora_bias": (False,),
    "peft_type": ("LORA",),
    "target_parameters": ([],),
    "use_dora": (False,),
    "use_qalora": (False,),
}
# Names, what tunes an initialisation, and what a key above switches on.
_HARMLESS = {
    *("base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "layers_pattern"),
    *("loftq_config", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    *("runtime_config", "task_type"),
}


class Exported(NamedTuple):
    """What `export` says of the adapter that it wrote: our names of what is in unitoken.safetensors, and the
    model that it is a change of."""

    parameters: tuple[str, ...]
    base_name: str
    base_fingerprint: str


class PeftSettings(NamedTuple):
    """An adapter_config.json, without what is the same in all that can be read."""

    rank: int
    alpha: float
    rslora: bool
    dropout: float
    target_modules: str | list[str]
    exclude_modules: str | list[str]
    modules_to_save: list[str]
    rank_pattern: dict[str, float]
    alpha_pattern: dict[str, float]
    exported: Exported | None

    def has_pair(self, module: str) -> bool:
        """Whether `peft` puts a pair beside the linear layer `module` ("model.layers.0.mlp.up_proj")."""
        return (
            _names(self.target_modules, module)
            and not _names(self.exclude_modules, module)
            and not self.is_saved(module)
        )

    def is_saved(self, module: str) -> bool:
        """Whether `peft` keeps `module` whole, alone or in a larger one."""
        names = module.split(".")
        around = [".".join(names[:count]) for count in range(1, len(names) + 1)]
        return any(name.endswith(end) for name in around for end in self.modules_to_save)

    def rank_and_alpha(self, module: str) -> tuple[float, float]:
        """Those of the pair beside `module`, which a pattern may say."""
        rank, alpha = _first_match(self.rank_pattern, module), _first_match(self.alpha_pattern, module)
        return self.rank if rank is None else rank, self.alpha if alpha is None else alpha


def _names(names: str | list[str], module: str) -> bool:
    """Whether `names` says `module`: a regular expression for all of it, or names, or ends of names."""
    if isinstance(names, str):
        return names == _ALL_LINEAR or bool(re.fullmatch(names, module))
    return any(module == name or module.endswith("." + name) for name in names)


def _first_match(patterns: Mapping[str, Any], module: str) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)


def read_settings(folder: pathlib.Path) -> PeftSettings:
    """The settings in adapter_config.json of `folder`.

    Raises ConversionError naming the key that lacks, makes no sense, or may change what is computed in a way
    that is not known here.
    """
    table = SettingsTable.of_json(folder / CONFIG)
    table = SettingsTable({k: v for k, v in table.values.items() if v is not None}, table.location)
    dropout = table.get("lora_dropout", (int, float), 0.0)
    if not 0 <= dropout < 1:
        raise ConversionError(
            f"{table.location}: 'lora_dropout' is {dropout}; expected from 0 to less than 1"
        )
    settings = PeftSettings(
        rank=table.count("r"),
        alpha=table.positive("lora_alpha"),
        rslora=table.get("use_rslora", bool, False),
        dropout=float(dropout),
        target_modules=_module_names(table, "target_modules"),
        exclude_modules=_module_names(table, "exclude_modules", []),
        modules_to_save=_module_names(table, "modules_to_save", []),
        rank_pattern=table.get("rank_pattern", dict, {}),
        alpha_pattern=table.get("alpha_pattern", dict, {}),
        exported=_exported(table),
    )
    table.close(_FIXED, _HARMLESS)
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = getattr(settings, key)
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
            _check_pattern(pattern, f"{table.location}: {key!r}")
        if isinstance(value, dict) and not all(type(number) in (int, float) for number in value.values()):
            raise ConversionError(f"{table.location}: {key!r} is {value!r}; expected numbers by module")
    return settings


def _module_names(table: SettingsTable, key: str, *default: list[str]) -> Any:
    value = table.get(key, list if key == "modules_to_save" else (str, list), *default)
    if not all(isinstance(name, str) and name for name in value):
        raise ConversionError(f"{table.location}: {key!r} is {value!r}; expected names of modules")
    return value


def _check_pattern(pattern: str, location: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConversionError(
            f"{location} has {pattern!r}, which is no regular expression: {error}"
        ) from None


def _exported(table: SettingsTable) -> Exported | None:
    """What `export` wrote into "auto_mapping", where it did."""
    values = table.get("auto_mapping", dict, {})
    if "unitoken" not in values:
        return None
    try:
        ours = values["unitoken"]
        exported = Exported(tuple(ours["parameters"]), ours["base"]["name"], ours["base"]["fingerprint"])
        if not all(isinstance(text, str) for text in (*exported.parameters, *exported[1:])):
            raise TypeError("expected names")
    except (KeyError, TypeError) as error:
        raise ConversionError(
            f"{table.location} (auto_mapping, unitoken) is damaged ({type(error).__name__}: {error})"
        ) from None
    return exported


def weight_files(folder: pathlib.Path, settings: PeftSettings) -> list[pathlib.Path]:
    """The files of `folder` that hold its tensors. Raises ConversionError where one is absent."""
    present = [folder / name for name in (WEIGHTS, PICKLE) if (folder / name).is_file()]
    if not present:
        raise ConversionError(f"{folder} has neither {WEIGHTS} nor {PICKLE}")
    files = present[:1]  # as `peft` chooses
    if settings.exported and settings.exported.parameters:
        files.append(folder / UNITOKEN_WEIGHTS)
        if not files[-1].is_file():
            raise ConversionError(
                f"{folder} lacks {UNITOKEN_WEIGHTS}, in which `unitoken export` left "
                f"{len(settings.exported.parameters)} parameters that `peft` has no place for "
                f"({settings.exported.parameters[0]}, ...): copy it from where it was exported"
            )
    return files


def read_tensors(path: str | os.PathLike, report: ProblemCollector) -> dict[str, Tensor]:
    """The tensors in a file of `weight_files` by plain name: without PREFIX, and without the adapter's name
    ("default"), which a model's own state has inside. `report` gets two of the same plain name."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_file(path).items():
        plain = re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name.removeprefix(PREFIX))
        plain = re.sub(r"\.modules_to_save\.[^.]+\.", ".", plain)
        if plain in tensors:
            report.add("duplicate", f"{tensors[plain].name} and {name} in {path} are the same tensor")
        tensors[plain] = tensor
    return tensors


def with_unasked(settings: PeftSettings, names: Mapping[str, Any]) -> PeftSettings:
    """`settings` with what `peft` saved whole of itself, of the tensors of these plain names."""
    unasked = [module for module in _SAVED_UNASKED if f"{module}.weight" in names]
    return settings._replace(modules_to_save=[*settings.modules_to_save, *unasked])

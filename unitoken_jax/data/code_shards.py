"""Writing a folder of VQ codes (codes.py) shard by shard, so that a stopped writer loses one shard at most.

Shards gather in `<folder>.building`. A shard's content follows from its number alone, and it appears under
its name only when complete: written again after a kill, or by another process, it has the same bytes.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from unitoken_jax.data.image_store import encode_name, name_hashes
from unitoken_jax.data.readers import array_record_module
from unitoken_jax.sequence.errors import RowError
from unitoken_jax.storage.atomic import atomic_write, explain_os_error, save_array, write_text

SHARD = 8192  # images a shard; with 1,024 codes each about 16 MB
ABOUT, NAMES, LEFT_OUT = "about.json", "names.npy", "left_out.jsonl"
SETTINGS, WORK = "settings.json", "work"  # while building; the writer's own notes go into the folder WORK
DATASET, VERSION = "codes", "1.0.0"  # as TFDS calls it


class CodesError(RowError):
    """VQ codes that cannot be used or written; the message names the folder or file."""

    def __init__(self, message: str, reason: str = "missing_codes"):
        super().__init__(message, reason)


def shard_count(images: int) -> int:
    """Shards of `images` images; one at least."""
    return max(1, -(-images // SHARD))


def shard_name(shard: int, count: int) -> str:
    """File name of shard `shard` of `count`."""
    return f"{DATASET}-train.array_record-{shard:05}-of-{count:05}"


def encode_record(name: str, codes: np.ndarray) -> bytes:
    """The tf.train.Example that TFDS reads: text `name`, and `codes` int[...] flattened, as int64."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["name"].bytes_list.value.append(encode_name(name))
    example.features.feature["codes"].int64_list.value.extend(codes.reshape(-1).tolist())
    return example.SerializeToString(deterministic=True)


def decode_record(record: bytes) -> tuple[str, np.ndarray]:
    """(name, codes int32[n]) of a record. Raises ValueError where it is not one of `encode_record`."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example ({error})") from None
    if set(features) != {"name", "codes"} or len(features["name"].bytes_list.value) != 1:
        raise ValueError(f"expected one name and its codes, found the features {sorted(features)}")
    codes = np.array(features["codes"].int64_list.value, np.int32)
    return features["name"].bytes_list.value[0].decode(errors="surrogatepass"), codes


@contextlib.contextmanager
def building(path: pathlib.Path, about: dict) -> Iterator[pathlib.Path]:
    """The folder where shards of `path` gather, of an earlier run with the same settings too.

    Left as it is if something fails. Raises CodesError where it holds shards made otherwise.
    """
    folder = path.with_name(path.name + ".building")
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / SETTINGS
    if settings.exists():
        try:
            stored = dict(json.loads(settings.read_text(encoding="utf-8")))
        except Exception as error:
            raise CodesError(f"{settings} is damaged ({error}): delete {folder} to begin again") from error
        if differing := [name for name in about if stored.get(name) != about[name]]:
            raise CodesError(
                f"{folder} holds the shards of an unfinished run with another {' and '.join(differing)}: "
                "delete it to begin again, or repeat that run to finish it"
            )
    else:
        write_text(settings, json.dumps(about))
    yield folder


def is_complete(path: pathlib.Path, about: dict) -> bool:
    """Whether `path` holds all codes already, made as `about` says and with no image left out."""
    try:
        stored = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        return not stored.get("left_out") and all(stored.get(name) == about[name] for name in about)
    except Exception:  # none is there, or a damaged one
        return False


def has_shard(folder: pathlib.Path, shard: int, count: int) -> bool:
    """Whether a shard is there, complete."""
    return (folder / shard_name(shard, count)).exists()


def write_shard(
    folder: pathlib.Path,
    shard: int,
    count: int,
    codes: Iterable[tuple[str, np.ndarray]],
    left_out: list[dict],
) -> None:
    """Writes one shard of (name, int[h, w]); `left_out` (filled while `codes` is read) lists what is missing.

    Raises OSError where the disk is full: shards that were complete stay.
    """
    path = folder / shard_name(shard, count)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    names, largest = [], -1
    try:
        writer = array_record_module().ArrayRecordWriter(str(staged), "group_size:1")
        try:
            for name, table in codes:
                writer.write(encode_record(name, table))
                names.append(name)
                largest = max(largest, int(table.max()))
        finally:
            writer.close()
        # The library does not always say that a write failed: count what can be read.
        stored = array_record_module().ArrayRecordReader(str(staged)).num_records()
        if stored != len(names):
            raise OSError(errno.ENOSPC, f"{stored} of {len(names)} records can be read again")
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        notes = {"largest": largest, "left_out": left_out}
        hashes, text = name_hashes(names), np.array(json.dumps(notes))
        atomic_write(_side(path), lambda out: np.savez(out, hashes=hashes, notes=text))
        os.replace(staged, path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    except RuntimeError as error:  # what the library raises for a failed write
        full = any(words in str(error) for words in ("No space left", "File too large", "quota"))
        raise explain_os_error(
            OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)), path
        ) from error
    finally:
        staged.unlink(missing_ok=True)


def _side(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".names.npz")


def finish(folder: pathlib.Path, path: pathlib.Path, count: int) -> bool:
    """Makes `folder` the complete `path` if all shards are there; whether `path` is there now.

    An older `path` is replaced.
    """
    shards = [folder / shard_name(shard, count) for shard in range(count)]
    if all(shard.exists() for shard in shards):
        try:
            _join(folder, shards)
            shutil.rmtree(path, ignore_errors=True)
            os.rename(folder, path)
        except OSError:
            if folder.exists():  # else another process has joined the shards meanwhile
                raise
    return path.exists()


def _join(folder: pathlib.Path, shards: list[pathlib.Path]) -> None:
    """Writes what makes the shards a whole, and removes what only their making needed."""
    hashes: list[np.ndarray] = []
    left_out: list[dict] = []
    largest = -1
    for shard in shards:
        with np.load(_side(shard)) as side:
            hashes.append(side["hashes"])
            notes = json.loads(str(side["notes"]))
        largest, left_out = max(largest, notes["largest"]), left_out + notes["left_out"]
    sizes = [[len(shard_hashes), shard.stat().st_size] for shard_hashes, shard in zip(hashes, shards)]
    joined = np.concatenate(hashes)
    order = np.argsort(joined, kind="stable")
    save_array(folder / NAMES, np.stack([joined[order].view(np.int64), order], 1))
    write_text(folder / LEFT_OUT, "".join(json.dumps(entry) + "\n" for entry in left_out))
    about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    about |= {"images": len(joined), "largest": largest, "left_out": len(left_out), "shards": sizes}
    write_metadata(folder, about)
    write_text(folder / ABOUT, json.dumps(about, indent=1))
    for needless in [*map(_side, shards), *folder.glob(".*.part"), folder / SETTINGS]:
        needless.unlink()
    shutil.rmtree(folder / WORK, ignore_errors=True)


def write_metadata(folder: pathlib.Path, about: dict) -> None:
    """What TFDS needs to read the shards: `tfds.builder_from_directory(folder).as_data_source("train")`."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"name": tfds.features.Text(), "codes": tfds.features.Tensor(shape=about["shape"], dtype=np.int32)}
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[records for records, _ in about["shards"]],
        num_bytes=sum(size for _, size in about["shards"]),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[split], version=VERSION, check_data=False
    )

"""A data set's pictures -> VQ codes, once, so that training need not make them (`data.codes = "offline"`)."""

import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from unitoken_jax.generate.image import BATCH, encode_pictures
from unitoken_jax.host.codes import codes_path, crops_to_encode, pictures_to_encode, write_codes
from unitoken_jax.host.conversation import read_conversations
from unitoken_jax.model_dir import UniToken


def tokenize(
    model: UniToken | str | os.PathLike,
    data: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    pictures: str | os.PathLike = "",
    batch: int = BATCH,
    on_error: Callable[[Exception], None] | None = None,
) -> pathlib.Path:
    """Writes the codes of every picture in conversation file `data`; the path of the codes file.

    `out` is a folder, None the data file's own. In another folder the data file is copied beside its codes;
    training then reads that copy, with `pictures` pointing to the old folder. `pictures`: folder of relative
    picture paths (default: the data file's). Written at the end, atomically. Raises ConversationError
    or PictureError at the first bad example, unless `on_error` takes it: that example is then left out.
    """
    data = pathlib.Path(data)
    conversations = read_conversations(data, pictures, on_error, need_answers=False)
    model = model if isinstance(model, UniToken) else UniToken.load(model)
    model.require("vqgan/encoder", "tokenizing")
    todo = pictures_to_encode(conversations, model.config)
    crops = crops_to_encode(todo, model.config, on_error=on_error)
    codes = {}
    with tqdm(total=len(todo), unit="picture", disable=None) as bar:  # None: only on a terminal
        while group := list(itertools.islice(crops, batch)):
            names, stack = zip(*group)
            codes.update(zip(names, encode_pictures(model, np.stack(stack), batch)))
            bar.update(len(group))

    folder = data.parent if out is None else pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / data.name
    path = codes_path(copy)
    codebook = np.ascontiguousarray(model.params["vqgan"]["codebook"])
    write_codes(path, codes, model.config, codebook_sha256=hashlib.sha256(codebook).hexdigest())
    if not (copy.exists() and copy.samefile(data)):
        shutil.copyfile(data, copy)
    return path

"""Files on a local disk or behind a URL (gs://bucket/...): in comes a path, out comes a file that is read by
byte range, or one written whole or not at all. Nothing here knows what the files hold.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.storage.atomic import atomic_folder, atomic_write, write_text
    from unitoken_jax.storage.paths import (
        FileSlice,
        InMemoryFile,
        RandomFile,
        absolute,
        as_path,
        expand,
        expand_home,
        is_remote,
    )

"""Files to batches: in come the sources of a DataConfig (JSON, ArrayRecord, TFDS, image folders), out comes
an endless stream of packed batches whose whole state is one row number.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.data.code_shards import CodesError
    from unitoken_jax.data.codes import Codes, read_codes
    from unitoken_jax.data.index import Index, open_index
    from unitoken_jax.data.loader import Loader, Validation
    from unitoken_jax.data.sources import Source

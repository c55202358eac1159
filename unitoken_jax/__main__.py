"""`python -m unitoken_jax` is `unitoken`."""

import sys

from unitoken_jax.cli.main import main

sys.exit(main())

"""`python -m fqgan`."""

import sys

from fqgan.cli import main

sys.exit(main())

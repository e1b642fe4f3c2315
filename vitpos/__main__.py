"""``python -m vitpos`` is the command ``vitpos``."""

import sys

from vitpos.cli.main import main

sys.exit(main())

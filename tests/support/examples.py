"""How many examples property tests that talk to a server try: few by default, many by `make properties`."""

import os
from typing import Final

TIMES: Final = int(os.environ.get("PENSTOCK_EXAMPLES", "1"))


def examples(few: int) -> int:
    """So many by default, and as many times more as the environment says."""
    return few * TIMES

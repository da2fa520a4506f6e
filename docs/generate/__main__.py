"""`python -m docs.generate [--check]`."""

import sys

from docs.generate import stale, write

if "--check" in sys.argv[1:]:
    names = stale()
    print("\n".join(f"stale: docs/reference/{name}" for name in names) or "docs/reference is as the code says")
    sys.exit(bool(names))
print("\n".join(f"wrote docs/reference/{name}" for name in write()) or "docs/reference is as the code says")

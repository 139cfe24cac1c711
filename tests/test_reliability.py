"""docs/reliability.md names tests and scripts that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_promise_has_its_test():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 30
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert tests, row
        assert all((ROOT / name).is_file() for name in tests), row
    assert all((ROOT / name).is_file() for name in re.findall(r"`(benchmarks/[\w/]+\.py)`", text))

"""Says which source files lack a test file of their own: tests/cas/test_sharded.py for tvix/cas/sharded.py."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def has_code(source: Path) -> bool:
    """Tell whether a module holds anything but documentation, imports and names."""
    plain = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign, ast.If)
    return any(not isinstance(node, plain) for node in ast.parse(source.read_text()).body)


def test_of(source: Path) -> Path:
    """Return the path of the test file that a source file should have."""
    inside = source.relative_to(ROOT / "tvix")
    return ROOT / "tests" / inside.parent / f"test_{inside.stem.strip('_')}.py"


def is_interface(source: Path) -> bool:
    """Interfaces are tested by the contract suites that every implementation runs."""
    return source.stem == "interfaces"


def main() -> int:
    """Print the missing test files; the exit code tells whether there are any."""
    sources = sorted(path for path in (ROOT / "tvix").rglob("*.py") if has_code(path) and not is_interface(path))
    missing = [source for source in sources if not test_of(source).exists()]
    for source in missing:
        print(f"{source.relative_to(ROOT)} has no {test_of(source).relative_to(ROOT)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

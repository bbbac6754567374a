"""The command line: ``rbnorm ...`` and ``python -m rbnorm ...``."""

import importlib.util
import sys

# Every distribution that the extra `lab` adds, by import name.
_LAB = (
    "accelerate",
    "filelock",
    "jinja2",
    "matplotlib",
    "pandas",
    "plotly",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "torchmetrics",
    "torchvision",
)


def main() -> int:
    """Run the command line and return its exit status."""
    missing = [name for name in _LAB if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"rbnorm: the command line needs {', '.join(missing)}: "
            'install it with pip install "rbnorm[lab]".',
            file=sys.stderr,
        )
        return 2
    from rbnorm.lab.cli import main as run  # noqa: PLC0415 - only importable with the extra `lab`

    return run()


if __name__ == "__main__":
    sys.exit(main())

"""What tests share: small models, data and servers made by hand, and the processes that run on them."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

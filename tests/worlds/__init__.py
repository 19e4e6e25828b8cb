"""What tests share, in rooms: `processes` and `machines` to run on, `data` and `strangers`' servers to read from, `models` and
`trainings` of them, `open_clip` to compare with."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

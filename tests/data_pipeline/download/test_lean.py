"""img2dataset imported without what a download never uses, in a process of its own: this one may have imported it in full."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from data_pipeline.download.lean import ABSENT, UNUSED
from tests.worlds import REPOSITORY

PROGRAM = """
import io, json, sys
import data_pipeline.download.safe_downloader, img2dataset.main
said = {"imported": sorted({name.partition(".")[0] for name in sys.modules})}

import cv2, numpy
from img2dataset import logger, reader, resizer

picture = io.BytesIO(cv2.imencode(".png", numpy.zeros((50, 60, 3), "uint8"))[1].tobytes())
said["albumentations.SmallestMaxSize"] = resizer.Resizer(32, "center_crop", False)(picture)[-1]  # it returns its exception's text
for name, use in {
    "wandb.init": lambda: logger.wandb.init(project="x"),
    "pandas.read_json": lambda: reader.pd.read_json("x"),
}.items():
    try:
        use()
    except RuntimeError as error:
        said[name] = str(error)
import pandas, pyarrow
said["rows"] = len(pyarrow.table({"a": [1, 2]}).to_pandas()) if "DataFrame" in vars(pandas) else None
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_downloads_process_imports_none_of_it(said: dict[str, Any]) -> None:
    heavy = {*UNUSED, *ABSENT, "scipy", "pydantic"}
    assert {"img2dataset", "webdataset", "pyarrow", "cv2"} <= set(said["imported"]) and not heavy & set(said["imported"])


def test_who_imports_one_of_them_afterwards_gets_the_real_one(said: dict[str, Any]) -> None:
    assert said["rows"] == 2


@pytest.mark.parametrize("name", ["albumentations.SmallestMaxSize", "wandb.init", "pandas.read_json"])
def test_what_is_used_after_all_is_named_on_one_line(name: str, said: dict[str, Any]) -> None:
    line = said[name]
    assert line.startswith(f"img2dataset uses {name}: ") and "\n" not in line and "take it out of UNUSED in " in line

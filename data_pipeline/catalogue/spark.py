"""A Spark session for curation or download: this machine's, a cluster's, or that of the spark-submit which runs us."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError, one_line

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def java_memory(limit: str) -> str:
    """`4GB` -> `4g`, as Java writes sizes. Raises `UserError`."""
    text = limit.upper().removesuffix("B").removesuffix("I").strip()
    if not text[:-1].strip().isdigit() or text[-1:] not in ("K", "M", "G", "T"):
        raise UserError(f"--memory-limit {limit}: expected a whole number with KB, MB, GB or TB, for example 4GB")
    return f"{text[:-1].strip()}{text[-1].lower()}"


def open_session(master: str | None, scratch: Path, memory: str | None = None, **settings: str) -> SparkSession:
    """A session that knows this package on every machine: executors need Python with our dependencies, no installation of ours.

    Args:
        master: `local[8]`, `spark://head:7077`, ...; None: what spark-submit or Spark's own configuration says.
        scratch: folder for what is shipped and, on one machine, for Spark's own files; Spark takes its name for a list of URLs
            (`PlainPaths` has others).
        memory: of Spark on one machine (`4GB`); clusters have settings of their own.
        settings: Spark's, with `__` for dots.

    Raises:
        UserError: no pyspark, no Java, no such master.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UserError(f"Spark: {error.name} is missing; install it: pip install 'sycoca-ds[spark]'") from None
    if not shutil.which("java") and not os.environ.get("JAVA_HOME"):
        raise UserError("Spark: no Java found (java, JAVA_HOME); install a Java 17 runtime")
    builder = SparkSession.builder.appName("sycoca-ds").config("spark.ui.showConsoleProgress", "false")  # we have our own
    if master is not None:
        builder = builder.master(master)
    if master is None or master.startswith("local"):
        # Both take effect only where this starts the JVM: under spark-submit they are the submitter's to say.
        builder = builder.config("spark.local.dir", str(scratch))
        if memory is not None:
            builder = builder.config("spark.driver.memory", java_memory(memory))
    for name, value in settings.items():
        builder = builder.config(name.replace("__", "."), value)
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        package = Path(__file__).resolve().parents[1]
        session.sparkContext.addPyFile(shutil.make_archive(str(scratch / package.name), "zip", package.parent, package.name))
    except Exception as error:  # py4j raises what the JVM met, from a wrong master to a full disk
        raise UserError(f"Spark, master {master or 'of its own settings'}: {one_line(error)}") from None
    return session

#!/usr/bin/env bash
# A catalogue on a Spark cluster: executors run the SQL of curation, then download; this machine verifies and reports.
#   SPARK_MASTER=spark://head:7077 data_pipeline/jobs/spark.sh --source relaion2b --metadata '/catalogues/relaion/*.parquet' --out /data/relaion
# Takes the options of `python -m data_pipeline build`. Killed, the same command goes on where it stopped.
#
# The catalogue, the data set folder and PYSPARK_PYTHON are to be found at the same place on every machine. Executors need Python with
# `pip install 'sycoca-ds[spark]'` (this package itself is sent along). On YARN: SPARK_MASTER=yarn and HADOOP_CONF_DIR. A task downloads
# one shard with --threads connections and resizes on one core: give executors as many cores as they have, and 1 GB a core.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
export PYSPARK_PYTHON=${PYSPARK_PYTHON:-$(command -v "$python")}
export PYSPARK_SUBMIT_ARGS=${PYSPARK_SUBMIT_ARGS:---executor-memory 16g pyspark-shell}
exec "$python" -m data_pipeline build --engine spark --distributor pyspark \
  --spark-master "${SPARK_MASTER:?set it to the master, for example spark://head:7077, yarn or local[8]}" "$@"

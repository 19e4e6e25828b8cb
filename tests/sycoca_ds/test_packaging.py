"""A plain `pip install .`: what the programs need stands in site-packages, and nothing else."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline import errors
from data_pipeline.errors import EXTRAS, REQUIRED, UserError, how_to_install, in_the_environment, run_command
from sycoca_ds import __version__
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import free_port
from tests.worlds.processes.watching import wait_until

LINKS = ("ds_configs", "hostfiles")
"""Folders of the checkout that are links in the package."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as git has them."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("sycoca_ds", "data_pipeline", "tests", *LINKS):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def built(kind: str, source: Path, folder: Path) -> Path:
    """The sdist or the wheel of a source folder, built without a network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution: what the first lacks the second cannot have."""
    folder = tmp_path_factory.mktemp("dist")
    shutil.unpack_archive(built("sdist", source, folder), folder)
    return built("wheel", folder / f"sycoca_ds-{__version__}", folder)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it, which takes all other packages from this one's. Beside them lies `dataclasses`,
    as img2dataset's requirements install it: whatever goes before Python's own library finds that instead."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    words = ["-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "dataclasses.py").write_text("raise ImportError('this is for Python 3.6')\n")
    launcher = Path(sys.executable).with_name("deepspeed").read_text().split("\n", 1)[1]
    (folder / "bin/deepspeed").write_text(f"#!{folder / 'bin/python'}\n{launcher}")
    (folder / "bin/deepspeed").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def installed(environment: Path) -> Path:
    """Where its packages lie."""
    return next(environment.glob("lib/python*/site-packages"))


def without_checkout() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def files(root: Path) -> set[str]:
    """The files of the packages below a folder."""
    found = (path for name in ("sycoca_ds", "data_pipeline") for path in (root / name).rglob("*") if path.is_file())
    linked = {f"sycoca_ds/{name}/{path.name}" for name in LINKS for path in (root / "sycoca_ds" / name).iterdir()}
    return {str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts} | linked


def test_every_file_of_the_packages_is_installed_and_no_test(installed: Path) -> None:
    assert files(installed) == files(REPOSITORY) and "sycoca_ds/hostfiles/slurm.sbatch" in files(installed)
    others = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert others - {"__pycache__"} == {"sycoca_ds", "data_pipeline", "others.pth", "dataclasses.py"}


SHADOW = "import sys; sys.path.insert(0, sys.argv[1]); import dataclasses"


def test_python_keeps_its_own_library_where_a_package_has_its_name(environment: Path, installed: Path, tmp_path: Path) -> None:
    python, settings = (
        environment / "bin/python",
        {"cwd": tmp_path, "env": without_checkout(), "capture_output": True, "text": True},
    )
    assert "for Python 3.6" in subprocess.run([python, "-c", SHADOW, installed], **settings).stderr, "nothing is shown by this test"
    for script in ("train", "evaluate", "export"):
        done = subprocess.run([python, installed / f"sycoca_ds/{script}.py", "--help"], timeout=240, **settings)
        assert done.returncode == 0 and done.stdout.startswith(("usage", "Trains", "Evaluates", "Weights")), done.stderr[-2000:]
    runner = [python, installed / "sycoca_ds/cli/deepspeed_runner.py", "--help"]
    done = subprocess.run(runner, timeout=240, **{**settings, "env": without_checkout() | {"SYCOCA_TRAIN_RUN": "run"}})
    assert done.returncode == 0 and "--num_gpus" in done.stdout, done.stderr[-2000:]
    code = "from data_pipeline.own_package import ROOT, import_path; print(ROOT, import_path({'PYTHONPATH': 'mine'}))"
    assert subprocess.run([python, "-c", code], **settings).stdout == f"{installed} {{}}\n"
    # processes that others start: a decoder, and what a rank finds
    Image.new("RGB", (3, 2)).save(tmp_path / "picture.tiff")
    code = "import sys; from data_pipeline.pictures.decode_apart import decode_apart; "
    code += "print(decode_apart(open(sys.argv[1], 'rb').read(), 99)[0].shape)"
    done = subprocess.run([python, "-c", code, tmp_path / "picture.tiff"], **settings)
    assert done.stdout == "(2, 3, 3)\n", done.stderr
    doctor = subprocess.run([environment / "bin/sycoca", "doctor", "--for", "train"], timeout=240, **settings)
    assert "AttributeError" not in doctor.stdout and re.search(r"^ok +torch", doctor.stdout, re.MULTILINE), doctor.stdout


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_main_way_from_another_folder(environment: Path, tmp_path: Path) -> None:
    """Drawn world, download, verification, tokenizer, training, evaluation, report: the demo, short; then an export of it."""

    def sycoca(*words: str) -> subprocess.CompletedProcess:
        words = (str(environment / "bin/sycoca"), *words)
        return subprocess.run(words, cwd=tmp_path, env=without_checkout(), capture_output=True, text=True, timeout=1200)

    demo = sycoca("demo", "--out", "demo", "--train", "300", "--steps", "20")
    assert (tmp_path / "demo/report.html").is_file(), demo.stdout[-3000:] + demo.stderr[-3000:]
    exported = sycoca("export", "demo/run", "--to", "safetensors", "--out", "weights")
    assert exported.returncode == 0 and (tmp_path / "weights/config.json").is_file(), exported.stderr


@pytest.mark.full
def test_a_wheel_of_the_checkout_has_what_that_of_the_source_distribution_has(source: Path, wheel: Path, tmp_path: Path) -> None:
    def names(path: Path) -> set[str]:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())

    assert names(built("wheel", source, tmp_path)) == names(wheel)


def test_the_command_works_from_any_folder_without_the_checkout(environment: Path, installed: Path, tmp_path: Path) -> None:
    """Whatever it shows comes from what is installed: the presets, the policies, the templates, the scripts that it names."""

    def sycoca(*words: str) -> str:
        words = (str(environment / "bin/sycoca"), *words)
        done = subprocess.run(words, cwd=tmp_path, env=without_checkout(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        assert str(REPOSITORY) not in done.stdout.replace(sys.prefix, "")  # but for the environment's own programs
        return done.stdout

    assert "sycoca_ds" not in os.listdir(tmp_path) and "supervise" in sycoca("--help")
    assert "fastest that fits" in sycoca("plan", "--preset", "tiny", "--gpus", "2")
    templates = sycoca("launch", "files", "--out", "templates").split()
    assert {Path(path).name for path in templates} == {
        *("a100x16", "deepspeed_env.example", "slurm.sbatch"),
        *("slurm_array.sbatch", "spark.sh"),
    }
    assert os.access(tmp_path / "templates/spark.sh", os.X_OK) == os.access(REPOSITORY / "data_pipeline/jobs/spark.sh", os.X_OK)
    said = sycoca("train", "--hostfile", "templates/a100x16", "--preset", "tiny", "--data.train", "x", "--dry-run")
    assert f" {installed}/sycoca_ds/train.py --preset tiny" in said
    stages = sycoca("demo", "--dry-run", "--out", "d")
    assert f"{installed}/sycoca_ds/evaluate.py" in stages and "7/7 evaluate" in stages and not (tmp_path / "d").exists()


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_an_empty_environment_with_pip(version: str, wheel: Path, tmp_path: Path) -> None:
    """With a network: base and `data`, on every Python that is to be had here."""
    python = next((path for path in pythons(version)), None)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    subprocess.run([python, "-m", "venv", tmp_path / "env"], check=True)
    pip = subprocess.run([tmp_path / "env/bin/pip", "install", "--quiet", f"{wheel}[data]"], capture_output=True, text=True)
    if version == "3.13":
        assert pip.returncode != 0 and "requires a different Python" in pip.stderr
        return
    if "Could not find a version" in pip.stderr or "connection" in pip.stderr.lower():
        pytest.skip(f"packages cannot be had: {pip.stderr.splitlines()[-1]}")
    assert pip.returncode == 0, pip.stderr[-3000:]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def sycoca(*words: str) -> subprocess.CompletedProcess:
        words = (str(tmp_path / "env/bin/sycoca"), *words)
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    assert sycoca("--version").stdout == f"sycoca {__version__}\n"
    assert "fastest that fits" in sycoca("plan", "--preset", "tiny", "--gpus", "2").stdout
    drawn = sycoca("data", "scenes", "--out", "world", "--train", "12", "--val", "4", "--test", "4", "--no-serve")
    assert drawn.returncode == 0 and (tmp_path / "world/world.json").is_file(), drawn.stderr
    doctor = sycoca("doctor", "--for", "data")
    assert "FAIL  packages" not in doctor.stdout and "ok    packages, data" in doctor.stdout, doctor.stdout
    assert list((tmp_path / "env").glob("lib/python*/site-packages/dataclasses.py")), "img2dataset no longer brings it"
    port = str(free_port())
    words = ["data", "scenes", "--out", "served", "--train", "40", "--val", "4", "--test", "4", "--port", port]
    with subprocess.Popen([tmp_path / "env/bin/sycoca", *words], cwd=tmp_path, env=environment) as server:
        try:
            assert wait_until(lambda: (tmp_path / "served/world.json").is_file() and listens(int(port)), 120)
            words = ["--source", "laion2b", "--metadata", "served/catalogue/train.parquet", "--out", "ds", "--image-size", "64"]
            words += [
                "--allow-host",
                f"127.0.0.1:{port}",
                "--proxy",
                "none",
                "--processes",
                "1",
                "--threads",
                "4",
                "--timeout",
                "3",
            ]
            built = sycoca("data", "build", *words)
        finally:
            server.terminate()
    assert built.returncode == 0 and (tmp_path / "ds/manifest/manifest.json").is_file(), built.stderr[-3000:]
    without = sycoca("demo", "--dry-run")
    assert without.returncode == 2 and without.stderr.startswith("error: torch is not installed for ")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def pythons(version: str) -> Iterator[Path]:
    """Interpreters of a version: on PATH, and pyenv's."""
    places = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for path in filter(None, places):
        done = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True)
        if done.stdout.strip() == version:
            yield Path(path)


@pytest.mark.slow
def test_training_from_any_folder_finds_the_default_policy(environment: Path, data_set: Path, tmp_path: Path) -> None:
    """It is read before the weights that this command lacks."""
    words = ["-m", "sycoca_ds.train", "--preset", "tiny", "--data.train", str(data_set), "--run.weights", "nowhere"]
    words, settings = [environment / "bin/python", *words], {"cwd": tmp_path, "env": without_checkout(), "capture_output": True}
    done = subprocess.run(words, text=True, timeout=240, **settings)
    assert done.returncode == 2 and "error: run.weights = nowhere does not exist" in done.stderr, done.stderr[-3000:]


@pytest.mark.full
def test_from_any_folder_it_names_the_policies_that_are_installed(environment: Path, data_set: Path, tmp_path: Path) -> None:
    words = ["-m", "sycoca_ds.train", "--preset", "tiny", "--data.train", str(data_set), "--run.weights", "nowhere"]
    words = [environment / "bin/python", *words, "--run.ds-config", "zero3"]
    done = subprocess.run(words, cwd=tmp_path, env=without_checkout(), capture_output=True)
    assert b"run.ds-config = zero3: no such file (shipped: ds_configs/zero0.json, " in done.stderr


PROGRAMS = {
    **{
        f"-m {path.parent.relative_to(REPOSITORY).as_posix().replace('/', '.')}": ()
        for path in sorted(REPOSITORY.glob("*/**/__main__.py"))
        if path.parts[len(REPOSITORY.parts)] in ("data_pipeline", "sycoca_ds")
    },
    "-m data_pipeline": ("report",),
    "-m sycoca_ds": ("plan", "--help"),
    "-m sycoca_ds.launch": ("check",),
    "-m sycoca_ds.data": ("inspect",),
    "-m sycoca_ds.eval": ("datasets",),
    "-m sycoca_ds.inference": ("caption",),
    **{f"sycoca_ds/{name}.py": () for name in ("train", "evaluate", "export")},
    "-m sycoca_ds.train": (),
    "-m sycoca_ds.engine.operators": (),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_outside_the_environment_a_line_says_so(program: str) -> None:
    """Python without site-packages, as it is where the environment is not active."""
    words = [sys.executable, "-S", *program.split(), *PROGRAMS[program]]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert re.fullmatch(
        rf"error: (tyro|numpy|torch) is not installed for {re.escape(sys.executable)}: activate the environment "
        r"\(`\. .venv/bin/activate` in the project's folder\); if there is none yet, `make install` makes it, or .*\n",
        done.stderr,
    )


def test_all_programs_are_among_them() -> None:
    assert len(PROGRAMS) == 18 and "-m sycoca_ds.launch" in PROGRAMS


def test_whoever_installed_a_wheel_is_told_of_the_extra_and_not_of_make(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def without(name: str) -> str:
        with pytest.raises(UserError) as error:
            in_the_environment(lambda: (_ for _ in ()).throw(ModuleNotFoundError(name=name)))
        return str(error.value)

    assert "`make install`" in without("waitress") and how_to_install("eval") == "`make install`, or `pip install -e '.[eval]'`"
    monkeypatch.setattr(errors, "ROOT", installed)
    for name, extra in (("waitress.server", "explore"), ("torch", "train"), ("sklearn", "eval"), ("numpy", "all")):
        said = without(name)
        assert f": `pip install 'sycoca-ds[{extra}]'` brings it; " in said and "make install" not in said
    code = "from data_pipeline.errors import how_to_install; print(how_to_install('eval'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.stdout == "`pip install 'sycoca-ds[eval]'`\n", done.stderr


def test_no_other_line_names_a_way_to_install() -> None:
    """But those of the doctor, which name both ways."""
    told = {
        str(path.relative_to(REPOSITORY))
        for package in ("data_pipeline", "sycoca_ds")
        for path in (REPOSITORY / package).rglob("*.py")
        if re.search(r"make install|pip install -e", path.read_text())
    }
    assert told == {"data_pipeline/errors.py", "sycoca_ds/doctor/lines.py"}


def test_modules_whose_absence_means_that_are_those_that_pyproject_requires() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    lists = re.findall(r"^(dependencies|data|train|eval|explore) = \[(.*?)^\]", text, re.M | re.S)
    required = {name.lower() for _, lines in lists for name in re.findall(r'^ +"([\w.-]+)', lines, re.M)} - {"sycoca-ds"}
    assert len(lists) == 5
    owners = importlib.metadata.packages_distributions()
    assert {owner.lower().replace("_", "-") for name in REQUIRED for owner in owners[name]} == required
    for extra, lines in lists:
        of_extra = {name.lower() for name in re.findall(r'^ +"([\w.-]+)', lines, re.M)} - {"sycoca-ds"}
        names = EXTRAS["all" if extra == "dependencies" else extra].split()
        assert {owner.lower().replace("_", "-") for name in names for owner in owners[name]} == of_extra


@pytest.mark.parametrize("name", ["nunpy", "data_pipeline.nothing", "sycoca_ds.nothing"])
def test_a_module_that_we_misspell_is_no_error_of_the_user(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: importlib.import_module(name))


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EACCES, True), (errno.EISDIR, True), (errno.ENOTDIR, True), (errno.ENOSPC, False), (errno.EIO, False)],
)
def test_a_place_that_cannot_be_written_is_a_line_and_a_disk_that_fails_is_not(
    number: int, told: bool, capsys: pytest.CaptureFixture
) -> None:
    """Tests that run as root are let in everywhere."""

    def main() -> int:
        raise OSError(number, os.strerror(number), "/elsewhere/run_status.json")

    if told:
        assert run_command(main) == 2
        assert capsys.readouterr().err.startswith(f"error: /elsewhere/run_status.json: {os.strerror(number)}: expected a place")
    else:
        with pytest.raises(OSError, match="run_status"):
            run_command(main)


def test_help_that_nobody_reads_to_its_end_is_141(tmp_path: Path) -> None:
    """As `sycoca plan --help | head -1`: help leaves by SystemExit, and what it said is written behind that."""
    script = tmp_path / "help.py"
    script.write_text(
        "import sys\nfrom data_pipeline.errors import run_command\n"
        "def main():\n    print('x' * 5000)\n    raise SystemExit(0)\n"
        "sys.stdin.read()\nsys.exit(run_command(main))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, script], **pipes, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 141 and process.stderr.read() == b""
    process.stderr.close()


RECORDS = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; else echo "ran $*"; fi
"""


def test_what_make_install_costs_is_said_before_and_pip_is_not_silent_in_the_minutes_of_it(tmp_path: Path) -> None:
    """With a Python that writes down what it is asked to do."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "python").write_text(RECORDS)
    (tmp_path / "python").chmod(0o755)
    words = ["make", "install", f"PYTHON={tmp_path}/python", "VENV=environment"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "environment/.installed").exists(), done.stderr
    lines = done.stdout.splitlines()
    said = next(n for n, line in enumerate(lines) if line.startswith("installing torch") and "2 to 9 minutes and 2.1 GB" in line)
    ran = [line for line in lines[said:] if line.startswith("ran ")]
    assert ran == ["ran -m pip install --quiet --upgrade pip", "ran -m pip install -e .[all]", "ran -m sycoca_ds.engine.operators"]
    assert "2.7 GB to download" in lines[said + 1] and "2.1 GB" in (REPOSITORY / "README.md").read_text().split("```sh")[0]


@pytest.mark.parametrize(
    ("python", "path", "expected"),
    [
        ("exit 1", os.environ["PATH"], "no Python.h for {folder}/python, which DeepSpeed needs: install python3-dev"),
        ("exit 0", "/nowhere", "no C++ compiler found, which DeepSpeed needs: install g++"),
    ],
)
def test_what_the_machine_lacks_is_said_before_the_download(python: str, path: str, expected: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
    (tmp_path / "python").chmod(0o755)
    words = [shutil.which("make"), "install", f"PYTHON={tmp_path}/python", "VENV=environment", "SHELL=/bin/sh"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path})
    assert done.returncode == 2 and expected.format(folder=tmp_path) in done.stderr and not (tmp_path / "environment").exists()

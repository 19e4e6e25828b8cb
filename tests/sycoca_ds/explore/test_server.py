"""The page's requests on a real run: the model's own answers, other people's requests refused, and a run that goes on training."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_file
from sycoca_ds.engine.checkpoint.seal import STATE_FILE, write_seal
from sycoca_ds.explore import server
from sycoca_ds.explore.keeper import Compared, Keeper
from sycoca_ds.explore.looking import PARTS
from sycoca_ds.explore.samples import find_samples
from sycoca_ds.explore.server import Settings
from tests.worlds.trainings.explored import open_here, served, state_of, until
from tests.worlds.trainings.training import run, with_validation

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* longer than this model")]
MOST = 200_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_set: Path) -> Path:
    """A run of four steps, with checkpoints of the second and the fourth."""
    return run(tmp_path_factory.mktemp("explore") / "run", data_set, *with_validation(data_set), ranks=1)


def keeper_of(path: Path, **settings: Any) -> Keeper:
    model = open_here(path)
    samples, why = find_samples(model, None, 0)
    return Keeper(path, model, open_here, Compared(samples, why, batch_size=8), **{"watch_seconds": 0.05, **settings})


@pytest.fixture(scope="module")
def page(trained: Path) -> Iterator[str]:
    with served(keeper_of(trained), Settings(most_bytes=MOST)) as address:
        until(address, stage="ready")
        yield address


def form(fields: dict[str, str | bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart body; bytes are a file."""
    parts = []
    for name, value in fields.items():
        file = '; filename="../../etc/passwd"' if isinstance(value, bytes) else ""
        data = value if isinstance(value, bytes) else value.encode()
        parts.append(f'--line\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n")
    return b"".join(parts) + b"--line--\r\n", {"Content-Type": "multipart/form-data; boundary=line"}


def send(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(address + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def look(address: str, **fields: str | bytes) -> dict[str, dict[str, Any]]:
    """The answer's lines by part; `begin` is the first one."""
    body, headers = form(fields)
    status, _, content = send(address, "/api/look", body, **headers)
    assert status == 200, content
    first, *lines, last = map(json.loads, content.splitlines())
    assert last == {"end": True} and [line["part"] for line in lines] == first["parts"]
    return {"begin": first} | {line["part"]: line for line in lines}


def refused(address: str, **fields: str | bytes) -> tuple[int, str, str]:
    body, headers = form(fields)
    status, _, content = send(address, "/api/look", body, **headers)
    said = json.loads(content)
    return status, said["field"], said["error"]


def test_answers_are_the_models(page: str, trained: Path) -> None:
    model = open_here(trained)
    samples, _ = find_samples(model, None, 0)
    number, other = 3, "two pictures of something else"
    picture, caption = samples.collection.picture(number), samples.caption(number)
    found = look(page, sample=str(number), caption=caption, other=other)
    assert list(found) == ["begin", *PARTS] and not any("lacks" in line for line in found.values())
    assert np.allclose(found["similarity"]["cosines"], model.similarity(picture, [caption, other])[0], rtol=0, atol=2e-6)
    rebuilt = model.reconstruct([picture] * 2, caption, [caption, other])
    assert np.allclose([one["error"] for one in found["reconstruction"]["rebuilt"]], [one.error for one in rebuilt], rtol=1e-5)
    assert [one["text"] for one in found["captions"]["written"]] == [model.caption(picture, beams)[0] for beams in (1, 4)]
    attention = model.attention(picture, other)[0]
    assert found["words"]["captions"][1]["words"] == attention.words
    assert np.allclose(found["words"]["captions"][1]["scores"], attention.word_scores.reshape(len(attention.words), -1), atol=6e-6)
    image_IE = model.encode_image([samples.collection.picture(one) for one in range(len(samples.collection))])
    nearest = [one for one in np.argsort(-(image_IE @ image_IE[number]), kind="stable").tolist() if one != number]
    assert found["neighbours"]["samples"][0]["text"] == samples.caption(nearest[0])


def test_a_file_is_read_as_the_evaluation_reads_it(page: str, trained: Path) -> None:
    model, stream = open_here(trained), io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 61, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    found = look(page, picture=stream.getvalue(), caption="a ring", parts="similarity,ranks")
    assert list(found) == ["begin", "similarity", "ranks"]
    assert np.allclose(found["similarity"]["cosines"], model.similarity(pixels, "a ring")[0], rtol=0, atol=2e-6)


def test_samples_come_in_pages(page: str, trained: Path) -> None:
    samples, _ = find_samples(open_here(trained), None, 0)
    pages = -(-len(samples.collection) // server.PAGE)
    found = [json.loads(send(page, f"/api/samples?page={number}")[2]) for number in range(pages)]
    listed = [sample for one in found for sample in one["samples"]]
    assert [one["number"] for one in listed] == list(range(len(samples.collection)))
    assert [one["caption"] for one in listed] == [samples.caption(number) for number in range(len(listed))]
    assert [one["other"] for one in listed] == [samples.wrong_caption(number) for number in range(len(listed))]
    assert all(one["caption"] != one["other"] for one in listed)
    for wrong in (pages, -1):
        assert send(page, f"/api/samples?page={wrong}")[0] == 404


def test_errors_are_one_line_beside_their_field(page: str) -> None:
    sample = {"sample": "0", "caption": "a ring"}
    assert refused(page, **{**sample, "caption": "  \n"}) == (400, "caption", "The caption is empty: type what the picture shows.")
    assert refused(page, caption="a ring") == (400, "picture", "There is no picture yet: choose, drop or paste one.")
    for broken in (b"", b"<svg/>", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a"):
        status, field, error = refused(page, picture=broken, caption="a ring")
        assert (status, field) == (400, "picture") and error.startswith("This is not a picture that can be read (")
    status, field, error = refused(page, picture=os.urandom(MOST + server.FORM_BYTES), caption="a ring")
    assert (status, field) == (413, "picture") and error.startswith("The picture is too large: at most")
    for number in ("-1", "1e3", "99999", "../../etc/passwd", "\u0663"):
        assert refused(page, **{**sample, "sample": number})[:2] == (400, "picture")
    for parts in ("foo", "similarity,foo", ""):
        status, _, error = refused(page, **sample, parts=parts)
        assert status == 400 and error.startswith(
            f"There is no part {parts.split(',')[-1]!r}: expected some of similarity, words, "
        )
    assert list(look(page, **sample, parts="ranks, similarity")) == ["begin", "similarity", "ranks"]
    assert refused(page, **sample, other="x" * 20_000) == (400, "other", "Too long: 20,000 letters, at most 10,000.")
    long = look(page, sample="0", caption="a red ring " * 60, parts="similarity")
    assert long["begin"]["notices"].keys() == {"caption"}
    assert "tokens with the marks of start and end, this model reads 40." in long["begin"]["notices"]["caption"]
    assert "lacks" not in long["similarity"]


def test_a_bomb_is_refused_in_words(page: str) -> None:
    stream = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(stream, "PNG")
    assert len(stream.getvalue()) < MOST
    status, field, error = refused(page, picture=stream.getvalue(), caption="a ring")
    assert (status, field) == (400, "picture") and "not a picture that can be read" in error


def test_requests_of_other_pages_are_refused(page: str) -> None:
    host = page.removeprefix("http://")
    port = host.rpartition(":")[2]
    body, headers = form({"sample": "0", "caption": "a ring", "parts": "similarity"})
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "192.168.0.1", ""):
        for path in ("/", "/api/state", "/explore.js"):
            assert send(page, path, Host=name)[0] == 400
        assert send(page, "/api/look", body, **headers, Host=name)[0] == 400
    assert send(page, "/api/state", Host=f"localhost:{port}")[0] == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}"):
        assert send(page, "/api/look", body, **headers, Origin=origin)[0] == 403
    assert send(page, "/api/look", body, **headers, Origin=page)[0] == 200


def raw(page: str, method: str, path: str) -> int:
    """A path as it is written, without a client's tidying."""
    host, _, port = page.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest(method, path, skip_accept_encoding=True)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_no_file_is_served_by_name(page: str) -> None:
    for path in (
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../server.py",
        "/server.py",
        "/page.html.j2",
        "/explore.js/../server.py",
        "//etc/passwd",
        "/api/samples/../../etc/passwd",
    ):
        assert raw(page, "GET", path) in (308, 404)
    assert raw(page, "GET", "/api/look") == 405 and raw(page, "DELETE", "/api/state") == 405


def test_the_page_asks_only_its_server(page: str) -> None:
    for path in ("/", "/explore.css", "/explore.js", "/parts.js", "/heat.js"):
        status, headers, content = send(page, path)
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["Content-Security-Policy"] and policy["frame-ancestors"] == "'none'"
        assert b"http://" not in content and b"https://" not in content


def test_a_question_waits_for_the_one_before_and_says_when_it_is_too_long(trained: Path) -> None:
    keeper = keeper_of(trained, busy_seconds=0.1)
    with served(keeper) as page:
        until(page, stage="ready")
        with keeper.lent():
            assert refused(page, sample="0", caption="a ring")[::2] == (
                503,
                "The model is busy with another question: try again in a moment.",
            )
            assert state_of(page)["version"] == 1, "the state comes while the model is busy"
        assert look(page, sample="0", caption="a ring", parts="similarity")["similarity"]["cosines"]
        refused(page, sample="0", caption="")
        assert look(page, sample="0", caption="a ring", parts="similarity"), "a refused question still holds the model"


def taken_away(trained: Path, away: Path) -> tuple[Path, Path, Path]:
    """(a copy of the run as it was at step 2, where step 4 comes, step 4 that is not there yet)."""
    shutil.copytree(trained, away / "run")
    newest = sorted((away / "run/checkpoints").glob("step_*"))[-1]
    assert newest.name == "step_00000004" and len(list(newest.parent.glob("step_*"))) == 2
    return away / "run", newest, newest.rename(away / newest.name)


def test_a_newer_checkpoint_is_taken_and_a_question_in_flight_finishes(trained: Path, tmp_path: Path) -> None:
    path, place, newer = taken_away(trained, tmp_path)
    keeper = keeper_of(path)
    second, fourth = keeper.held.model, open_here(newer)
    picture = keeper.compared.samples.collection.picture(1)
    with served(keeper) as page:
        state = until(page, stage="ready")
        assert (state["version"], state["model"]["step"]) == (1, 2) and state["training"]["status"] == "completed"
        before = look(page, sample="1", caption="a ring", parts="similarity")
        newer.rename(place)
        with keeper.lent() as held:  # in flight: it is opened, but not looked at with, and not the older one's end
            waiting = until(page, newer={"step": 4, "stage": "samples", "done": 0, "total": state["total"]})
            assert waiting["version"] == 1 and held.model is second
        state = until(page, version=2, newer=None)
        assert (state["model"]["step"], state["stage"], state["left_out"]) == (4, "ready", "")
        after = look(page, sample="1", caption="a ring", parts="similarity,ranks")
        for found, model in ((before, second), (after, fourth)):
            cosine = model.similarity(picture, "a ring")[0]
            assert np.allclose(found["similarity"]["cosines"], cosine, rtol=0, atol=2e-6)
        assert before["begin"]["step"] == 2 and after["begin"]["step"] == 4 and after["begin"]["version"] == 2
        assert before["similarity"]["cosines"] != after["similarity"]["cosines"]
        shutil.rmtree(place)
        assert until(page, gone=True)["version"] == 2
        time.sleep(0.5)
        assert state_of(page)["version"] == 2 and state_of(page)["newer"] is None, "step 2 is taken in place of step 4"
        assert look(page, sample="1", caption="a ring", parts="similarity")["similarity"] == after["similarity"]


def counted(keeper: Keeper) -> list[str]:
    """The names of the checkpoints that it opens from now on."""
    names, opened = [], keeper.opened
    keeper.opened = lambda folder: names.append(folder.name) or opened(folder)
    return names


def test_the_next_one_is_opened_only_when_the_older_one_is_given_up(trained: Path, tmp_path: Path) -> None:
    path, place, newer = taken_away(trained, tmp_path)
    keeper = Keeper(path, open_here(path), open_here, Compared(None, "There are none."), watch_seconds=0.02)
    names = counted(keeper)
    with served(keeper) as page:
        with keeper.lent() as held:
            newer.rename(place)
            assert until(page, version=2)["model"]["step"] == 4 and held.model.step == 2
            resealed(place, place.with_name("step_00000005"), 5)
            time.sleep(0.5)
            assert names == ["step_00000004"], "a third model is opened while the first one answers"
        assert until(page, version=3)["model"]["step"] == 5 and names == ["step_00000004", "step_00000005"]


def resealed(source: Path, place: Path, step: int) -> Path:
    """The same weights as of another step, sealed as the run does it: the folder is whole when it gets its name."""
    made = place.with_name(f"making_{place.name}")
    shutil.copytree(source, made)
    state = json.loads((made / STATE_FILE).read_text())
    del state["seal"]
    state["step"] = step
    state["files"] = {name: {"bytes": (made / name).stat().st_size, "sha256": sha256_file(made / name)} for name in state["files"]}
    write_seal(made, state)
    return made.rename(place)


def test_a_damaged_newer_checkpoint_is_named_and_the_next_one_taken(trained: Path, tmp_path: Path) -> None:
    path, place, newer = taken_away(trained, tmp_path)
    sound = resealed(newer, tmp_path / "step_00000006", 6)
    (damaged,) = newer.glob("*_optim_states.pt")  # of one rank: with the weights, which are all that is read here
    damaged.write_bytes(damaged.read_bytes()[:-1])
    keeper = keeper_of(path)
    names = counted(keeper)
    with served(keeper) as page:
        until(page, stage="ready")
        newer.rename(place)
        end = time.monotonic() + 120
        while not (state := state_of(page))["left_out"] and time.monotonic() < end:
            time.sleep(0.05)
        assert state["left_out"].startswith(f"step 4 cannot be opened: checkpoint {place / damaged.name} is damaged (its size or")
        assert state["version"] == 1
        assert look(page, sample="0", caption="a ring", parts="similarity")["begin"]["step"] == 2
        time.sleep(0.5)
        assert names == [place.name], "it is tried again and again"
        sound.rename(place.with_name("step_00000006"))
        state = until(page, version=2)
        assert (state["model"]["step"], state["left_out"]) == (6, "")


def test_pictures_that_cannot_be_read_are_told_and_the_rest_answers(trained: Path, data_set: Path, tmp_path: Path) -> None:
    shutil.copytree(data_set, tmp_path / "data")
    model = open_here(trained)
    samples, _ = find_samples(model, str(tmp_path / "data"), 0)
    picture = io.BytesIO()
    Image.fromarray(samples.collection.picture(0)).save(picture, "PNG")
    shutil.rmtree(tmp_path / "data/shards")
    with served(Keeper(trained, model, open_here, Compared(samples))) as page:
        state = until(page, stage="ready")
        assert state["problems"].keys() == {"samples"} and str(tmp_path / "data/shards") in state["problems"]["samples"]
        found = look(page, picture=picture.getvalue(), caption="a ring", parts="similarity,ranks,neighbours")
        assert found["similarity"]["cosines"]
        for part in ("ranks", "neighbours"):
            assert found[part]["lacks"].startswith("The pictures to compare with cannot be read: ") and not found[part]["wait"]
        assert refused(page, sample="0", caption="a ring")[:2] == (400, "picture")
        assert send(page, "/api/samples")[0] == 404
    with pytest.raises(UserError, match=f"^--data {tmp_path / 'data'}: .* is missing"):
        find_samples(model, str(tmp_path / "data"), 0)


def test_a_reader_who_leaves_frees_the_model(trained: Path) -> None:
    keeper = keeper_of(trained, busy_seconds=60)
    with served(keeper) as page:
        until(page, stage="ready")
        host, _, port = page.removeprefix("http://").partition(":")
        body, headers = form({"sample": "0", "caption": "a ring"})
        for _ in range(3):
            connection = http.client.HTTPConnection(host, int(port))
            connection.request("POST", "/api/look", body, headers)
            connection.close()
        done = threading.Event()
        threading.Thread(target=lambda: (look(page, sample="0", caption="a ring", parts="similarity"), done.set())).start()
        assert done.wait(60)

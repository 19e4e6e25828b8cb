"""The page and what it asks, over HTTP on this machine.

    GET  /                 the page; /explore.css and the scripts its parts
    GET  /api/state        the model, what it is compared with, what goes on
    GET  /api/samples      thumbnails and captions, a page of them (?page=0)
    POST /api/look         a form: `picture` (a file) or `sample` (a number), `caption`, `other`, `parts`; a line of JSON a part

A request comes from strangers, too: any page that a browser has open may send some. Hosts and origins that are not this server's
are refused (DNS rebinding), bodies are bounded, and nothing in a request names a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, Response, jsonify, request
from jinja2 import ChoiceLoader, Environment, PackageLoader
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from data_pipeline.errors import UserError
from sycoca_ds.eval.pictures import INFERNO
from sycoca_ds.eval.report.galleries import data_uri
from sycoca_ds.explore.keeper import Busy, Held, Keeper
from sycoca_ds.explore.looking import PARTS, Decoding, Looking, Question, answers
from sycoca_ds.inference.model import Model
from sycoca_ds.inference.pictures import readable, thumbnail

MOST_BYTES = 32 << 20
"""Of a picture."""
MOST_LETTERS = 10_000
"""Of a caption."""
FORM_BYTES = 256 << 10
"""Of a request beside the picture."""
PAGE = 12
"""Samples on a page."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SCRIPTS = ("explore.js", "parts.js", "heat.js")


class Refused(Exception):
    """A question that cannot be answered, in one line, and the field it is about."""

    def __init__(self, sentence: str, field: str, status: int = 400):
        super().__init__(sentence)
        self.field, self.status = field, status


@dataclass(frozen=True)
class Settings:
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """By which a browser may call this server, without the port."""
    decoding: Decoding = Decoding()
    most_bytes: int = MOST_BYTES


def make_app(keeper: Keeper, settings: Settings) -> Flask:
    """The server's application (WSGI)."""
    app = Flask(__name__, static_folder=None)
    app.config["TRUSTED_HOSTS"] = list(settings.hosts)
    app.config["MAX_CONTENT_LENGTH"] = settings.most_bytes + FORM_BYTES
    app.config["MAX_FORM_MEMORY_SIZE"] = FORM_BYTES
    app.config["MAX_FORM_PARTS"] = 8
    folders = [PackageLoader("sycoca_ds.explore", "."), PackageLoader("sycoca_ds.eval.report", ".")]
    environment = Environment(loader=ChoiceLoader(folders), autoescape=True)
    limits = {"bytes": settings.most_bytes, "letters": MOST_LETTERS}
    page = environment.get_template("page.html.j2").render(inferno=INFERNO.astype(int).tolist(), limits=limits, parts=PARTS)
    style = environment.get_template("explore.css.j2").render()
    scripts = {name: (Path(__file__).parent / name).read_text() for name in SCRIPTS}

    @app.before_request
    def only_from_here() -> None:
        _ = request.host  # SecurityError, a 400, for a host that is not trusted
        origin = request.headers.get("Origin")
        if origin is not None and origin != request.host_url.rstrip("/"):
            raise Refused("This request comes from another page.", "", 403)

    @app.after_request
    def closed(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.errorhandler(Refused)
    def refused(error: Refused) -> tuple[Response, int]:
        return jsonify(error=str(error), field=error.field), error.status

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> tuple[Response, int]:
        if isinstance(error, RequestEntityTooLarge):
            return jsonify(error=f"The picture is too large: at most {settings.most_bytes / 2**20:.3g} MiB.", field="picture"), 413
        return jsonify(error=f"{error.name}.", field=""), error.code

    @app.get("/")
    def index() -> Response:
        return Response(page, mimetype="text/html")

    @app.get("/explore.css")
    def css() -> Response:
        return Response(style, mimetype="text/css")

    @app.get("/<any(" + ",".join(f'"{name}"' for name in SCRIPTS) + "):name>")
    def script(name: str) -> Response:
        return Response(scripts[name], mimetype="text/javascript")

    @app.get("/api/state")
    def state() -> Response:
        return jsonify(_state(keeper))

    @app.get("/api/samples")
    def samples() -> Response:
        found = keeper.compared.samples
        if found is None:
            raise Refused(keeper.compared.why, "picture", 404)
        pages = -(-len(found.collection) // PAGE)
        number = request.args.get("page", 0, type=int)
        if not 0 <= number < pages:
            raise Refused(f"There are {pages} pages of samples.", "picture", 404)
        shown = range(number * PAGE, min(len(found.collection), (number + 1) * PAGE))
        try:
            listed = [
                {
                    "number": sample,
                    "picture": data_uri(thumbnail(found.collection.picture(sample))),
                    "caption": found.caption(sample),
                    "other": found.wrong_caption(sample),
                }
                for sample in shown
            ]
        except UserError as error:
            raise Refused(str(error), "picture", 404) from None
        return jsonify(page=number, pages=pages, of=len(found.collection), samples=listed)

    @app.post("/api/look")
    def look() -> Response:
        parts = _parts()
        stack = ExitStack()
        try:
            held = stack.enter_context(keeper.lent())
            question = _question(keeper, held.model)
            looking = Looking(held, keeper.compared, question, settings.decoding)
            lines = _lines(_begin(held, question), looking, parts)
        except Busy:
            raise Refused("The model is busy with another question: try again in a moment.", "", 503) from None
        except BaseException:
            stack.close()
            raise
        response = Response(lines, mimetype="application/x-ndjson")
        response.call_on_close(stack.close)  # also where the reader leaves before the first line
        return response

    return app


def _parts() -> tuple[str, ...]:
    """Those that are asked for, by default all, in their order. Raises `Refused`."""
    asked = [part.strip() for part in request.form.get("parts", ",".join(PARTS)).split(",")]
    unknown = [part for part in asked if part not in PARTS]
    if unknown:
        raise Refused(f"There is no part {unknown[0]!r}: expected some of {', '.join(PARTS)}, with commas between them.", "")
    return tuple(part for part in PARTS if part in asked)


def _lines(begin: dict[str, Any], looking: Looking, parts: tuple[str, ...]) -> Iterator[str]:
    yield json.dumps({**begin, "parts": parts}) + "\n"
    for answer in answers(looking, parts):
        yield json.dumps(answer, allow_nan=False) + "\n"
    yield json.dumps({"end": True}) + "\n"


def _begin(held: Held, question: Question) -> dict[str, Any]:
    notices = {}
    for field in ("caption", "other"):
        if told := _cut(held.model, getattr(question, field)):
            notices[field] = told
    return {"version": held.version, "step": held.model.step, "picture": data_uri(question.picture), "notices": notices}


def _cut(model: Model, text: str) -> str:
    """What is said of a text that is longer than the model reads."""
    tokenizer, most = model.loaded.known_tokenizer, model.context_length
    if tokenizer is None or not text:
        return ""
    ids = tokenizer.encode([text], 8 * len(text) + 2)[0]
    tokens = int(np.flatnonzero(ids == tokenizer.eot_id)[-1]) + 1
    if tokens <= most:
        return ""
    return f"Too long: {tokens} tokens with the marks of start and end, this model reads {most}. The rest is cut off."


def _question(keeper: Keeper, model: Model) -> Question:
    """What is asked. Raises `Refused`."""
    caption, other = (request.form.get(name, "").strip() for name in ("caption", "other"))
    for field, text in (("caption", caption), ("other", other)):
        if len(text) > MOST_LETTERS:
            raise Refused(f"Too long: {len(text):,} letters, at most {MOST_LETTERS:,}.", field)
    if not caption:
        raise Refused("The caption is empty: type what the picture shows.", "caption")
    sent, number = request.files.get("picture"), request.form.get("sample")
    if sent is not None:
        data = sent.read()
        places, shown, problems = readable([data], model.image_size)
        if not places:
            raise Refused(f"This is not a picture that can be read ({problems[0]}).", "picture")
        return Question(shown[0], None, caption, other)
    if number is None:
        raise Refused("There is no picture yet: choose, drop or paste one.", "picture")
    samples = keeper.compared.samples
    if samples is None:
        raise Refused(keeper.compared.why, "picture")
    if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(samples.collection)):
        raise Refused(f"There is no such sample: they are numbered 0 to {len(samples.collection) - 1}.", "picture")
    try:
        return Question(samples.collection.picture(int(number)), int(number), caption, other)
    except UserError as error:
        raise Refused(str(error), "picture") from None


def _state(keeper: Keeper) -> dict[str, Any]:
    held, compared = keeper.held, keeper.compared
    model, samples = held.model, compared.samples
    config = model.config
    return {
        "version": held.version,
        "model": {
            "name": keeper.name,
            "folder": str(model.loaded.folder),
            "family": model.family,
            "step": model.step,
            "parameters": sum(parameter.numel() for parameter in model.loaded.model.parameters()),
            "image_size": model.image_size,
            "side": config.image.image_size // config.image.patch_size,
            "context_length": model.context_length,
            "similarity": config.masking.similarity,
            "device": str(model.device),
            "precision": model.precision,
            "ema": model.loaded.ema_decay,
        },
        "stage": held.stage,
        "done": held.done,
        "total": held.total,
        "problems": held.problems,
        "newer": keeper.newer,
        "left_out": keeper.problem,
        "unseen": keeper.unseen,
        "gone": keeper.gone,
        "training": keeper.training(),
        "samples": None
        if samples is None
        else {"folder": str(samples.collection.folder), "pictures": len(samples.collection), "compared": samples.compared},
        "why": compared.why,
        "index": None if compared.folder is None else str(compared.folder),
    }

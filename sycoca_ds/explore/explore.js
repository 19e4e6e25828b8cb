// The page of explore: asks the server (server.py) and shows what it answers, part by part.
// Texts go into the page as text alone: captions and names of files are other people's.

import { show, computing, clear, sentence } from "/parts.js";

const settings = JSON.parse(document.getElementById("settings").textContent);
const at = (id) => document.getElementById(id);
const FIELDS = ["picture", "caption", "other"];
const DOING = {
  similarity: "cosines", words: "patches and words", masks: "masks", reconstruction: "the rebuilt picture",
  captions: "captions", ranks: "places", neighbours: "neighbours",
};

let state = null; // what the server last said of itself
let source = null; // {sample} or {file}
let asking = null; // ends the question that is being answered
let shown = null; // {version, step} of what stands on the page
let waiting = new Map(); // parts whose pictures are still being looked at, and at which stage they were asked for
let page = { number: 0, pages: 1 };
let typed = false; // whether a person has touched anything

function tell(field, text, mild = false) {
  const place = at(field ? `${field}-problem` : "problem");
  place.textContent = text;
  place.classList.toggle("mild", mild);
  if (field && field !== "picture") at(field).toggleAttribute("aria-invalid", Boolean(text) && !mild);
}

function number(value) {
  return value.toLocaleString("en-US");
}

// ---- asking ----

function form(parts) {
  const data = new FormData();
  if (source?.file) data.append("picture", source.file, "picture");
  else if (source) data.append("sample", source.sample);
  data.append("caption", at("caption").value);
  data.append("other", at("other").value);
  data.append("parts", parts.join(","));
  return data;
}

async function look(parts = settings.parts) {
  asking?.abort();
  const mine = (asking = new AbortController()), whole = parts === settings.parts;
  FIELDS.concat([""]).forEach((field) => tell(field, ""));
  if (whole) waiting.clear();
  at("bar").hidden = false;
  at("bar").value = 0;
  at("doing").textContent = "Asking the model...";
  try {
    const answer = await fetch("/api/look", { method: "POST", body: form(parts), signal: mine.signal });
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({ error: `The server answers ${answer.status}.`, field: "" }));
      tell(said.field, said.error);
      return;
    }
    parts.forEach(computing);
    await read(answer.body, parts);
  } catch (error) {
    if (error.name !== "AbortError") tell("", "The server does not answer: is sycoca explore still running?");
  } finally {
    if (mine === asking) {
      asking = null;
      at("bar").hidden = true;
      at("doing").textContent = "";
      clear();
      news();
    }
  }
}

async function read(body, parts) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", done = 0; ; ) {
    const piece = await reader.read();
    if (piece.done) return;
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((text) => JSON.parse(text))) {
      if (line.picture && line.version) begin(line);
      else if (line.part) {
        done += 1;
        line.wait ? waiting.set(line.part, state.stage) : waiting.delete(line.part);
        show(line, { state, settings, picture: at("preview"), captions: [at("caption").value, at("other").value] });
      }
      at("bar").value = done / parts.length;
      at("doing").textContent = done < parts.length ? `Computing ${DOING[parts[done]]} (${done + 1} of ${parts.length})` : "";
    }
  }
}

function begin(line) {
  shown = { version: line.version, step: line.step };
  at("preview").src = line.picture;
  at("preview").hidden = false;
  for (const [field, text] of Object.entries(line.notices)) tell(field, text, true);
}

// ---- choosing ----

function take(file) {
  typed = true;
  if (file.size > settings.limits.bytes) {
    tell("picture", `The picture is too large: ${Math.ceil(file.size / 2 ** 20)} MiB, at most ${settings.limits.bytes >> 20} MiB.`);
    return;
  }
  source = { file };
  pressed();
  at("preview").alt = file.name ? `The picture ${file.name}` : "The picture that was pasted";
  if (at("caption").value.trim()) look();
  else {
    tell("picture", "");
    const reader = new FileReader();
    reader.onload = () => { at("preview").src = reader.result; at("preview").hidden = false; };
    reader.readAsDataURL(file);
    tell("caption", "The caption is empty: type what the picture shows.");
    at("caption").focus();
  }
}

function choose(sample) {
  source = { sample: sample.number };
  at("caption").value = sample.caption;
  at("other").value = sample.other;
  at("preview").src = sample.picture;
  at("preview").alt = `Validation picture ${sample.number}: ${sample.caption}`;
  at("preview").hidden = false;
  pressed();
  look();
}

function pressed() {
  for (const button of at("thumbs").querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(source?.sample === Number(button.dataset.sample)));
}

async function turn(to) {
  const answer = await fetch(`/api/samples?page=${to}`).catch(() => null);
  const found = await answer?.json().catch(() => null);
  if (!answer?.ok) {
    tell("picture", found?.error ?? "The server does not answer: is sycoca explore still running?");
    return [];
  }
  tell("picture", "");
  page = { number: found.page, pages: found.pages };
  at("page").value = found.page + 1;
  at("pages").textContent = `of ${number(found.pages)}, ${number(found.of)} pictures`;
  at("before").disabled = found.page === 0;
  at("after").disabled = found.page + 1 >= found.pages;
  at("thumbs").replaceChildren(...found.samples.map((sample) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const picture = document.createElement("img"), text = document.createElement("span");
    Object.assign(button, { type: "button", onclick: () => { typed = true; choose(sample); } });
    button.dataset.sample = sample.number;
    Object.assign(picture, { src: sample.picture, alt: "", className: state.model.image_size < 128 ? "pixel" : "" });
    text.textContent = sample.caption;
    button.append(picture, text);
    item.append(button);
    return item;
  }));
  pressed();
  return found.samples;
}

// ---- the server's state ----

function facts() {
  const model = state.model, parts = [`${model.family}, ${(model.parameters / 1e6).toFixed(1)} M parameters`];
  parts.push(model.step === null ? "exported" : `step ${number(model.step)}`);
  if (state.training) {
    const { status, step, steps } = state.training;
    parts.push(status === "running" ? `training goes on, step ${number(step)} of ${number(steps)}` : `training ${status}`);
  }
  if (model.ema) parts.push(`moving average, decay ${model.ema}`);
  parts.push(`${model.image_size} px in ${model.side} x ${model.side} patches`, `${model.precision} on ${model.device}`);
  at("name").textContent = model.name;
  document.title = `A look inside ${model.name}`;
  at("facts").textContent = `${parts.join("; ")}.`;
  at("pick").hidden = !state.samples;
  at("preview").classList.toggle("pixel", model.image_size < 128);
}

function news() {
  const { newer, model } = state, old = shown && shown.version !== state.version;
  let text = "";
  if (newer) {
    const how = newer.total && newer.stage === "samples" ? ` (pictures ${number(newer.done)} of ${number(newer.total)})` : "";
    text = `Step ${number(newer.step)} has been saved and is being opened${how}. Until then step ${number(model.step)} answers.`;
  } else if (old) text = `Step ${number(model.step)} is in use from now on; what stands here is of step ${number(shown.step)}.`;
  else if (state.left_out) text = `A newer checkpoint is left out: ${state.left_out}`;
  else if (state.unseen) text = state.unseen;
  else if (state.problems.samples) text = `The pictures to compare with cannot be read: ${state.problems.samples}`;
  else if (state.problems.index) text = `No neighbours from --index: ${state.problems.index}`;
  else if (state.stage === "samples") text = `Looking at the pictures to compare with: ${number(state.done)} of ${number(state.total)}.`;
  else if (state.stage === "index") text = `Looking at the pictures in ${state.index}: ${number(state.done)} so far.`;
  else if (state.gone) text = `The checkpoint of step ${number(model.step)} is gone from the disk; it answers from memory.`;
  if (at("news-text").textContent !== text) at("news-text").textContent = text; // or a reader hears it again
  at("news").hidden = !text;
  at("again").hidden = !old || Boolean(newer);
}

async function ask() {
  try {
    state = await (await fetch("/api/state")).json();
  } catch {
    at("news-text").textContent = "The server does not answer any more: start sycoca explore again.";
    at("news").hidden = false;
    return false;
  }
  facts();
  news();
  const there = (part) => waiting.has(part) && ["index", "ready"].includes(state.stage) && waiting.get(part) !== state.stage;
  if (!asking && settings.parts.some(there)) look(settings.parts.filter(there));
  return true;
}

async function start() {
  if (!(await ask())) return;
  if (state.samples) {
    const first = await turn(0);
    if (first.length && !typed) choose(first[0]);
  } else settings.parts.forEach((part) => sentence(part, "Choose a picture and type a caption."));
  setInterval(() => document.visibilityState === "visible" && ask(), 1500);
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); look(); });
for (const field of ["caption", "other"]) {
  at(field).addEventListener("input", () => { typed = true; });
  at(field).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); look(); }
  });
}
at("file").addEventListener("change", () => { if (at("file").files[0]) take(at("file").files[0]); at("file").value = ""; });
at("again").addEventListener("click", () => look());
at("pick").addEventListener("click", () => {
  at("picker").hidden = !at("picker").hidden;
  at("pick").setAttribute("aria-expanded", String(!at("picker").hidden));
  if (!at("picker").hidden) at("thumbs").querySelector("button")?.focus();
});
at("before").addEventListener("click", () => turn(page.number - 1));
at("after").addEventListener("click", () => turn(page.number + 1));
at("page").addEventListener("change", () => {
  const to = Math.round(Number(at("page").value)) || 1;
  turn(Math.min(page.pages, Math.max(1, to)) - 1);
});
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  else tell("picture", "What was dropped is no file: save the picture and drop that.");
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
start();

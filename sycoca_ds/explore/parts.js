// Each part of an answer as a section of the page.

import { drawHeat, drawScale } from "/heat.js";

const KINDS = ["caption", "wrong caption"];
const place = (part) => document.getElementById(`part-${part === "ranks" ? "similarity" : part}`);
const body = (part) => place(part).querySelector(".body");

// An element: names of properties, or of attributes where they have a dash.
function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    name.includes("-") || name === "role" ? made.setAttribute(name, value) : (made[name] = value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const exact = (value) => value.toFixed(4).replace("-", "\u2212");
const percent = (share) => `${Math.round(100 * share)} %`;
const note = (text, more = "") => (text ? make("p", { className: `note ${more}` }, text) : null);

function figure(picture, alt, small, ...below) {
  return make("figure", {}, make("img", { src: picture, alt, className: small ? "pixel" : "" }), make("figcaption", {}, ...below));
}

export function sentence(part, text) {
  if (part === "similarity") {
    document.getElementById("fits").replaceChildren(make("tr", {}, make("td", { className: "soft", colSpan: 4 }, text)));
    document.getElementById("places").textContent = "";
    document.getElementById("nearest").replaceChildren();
  } else if (part === "ranks") document.getElementById("places").textContent = text;
  else body(part).replaceChildren(make("p", { className: "lacks" }, text));
}

// The part is being computed: what stood there stays, pale, so that the page does not jump.
export function computing(part) {
  const section = place(part);
  section.setAttribute("aria-busy", "true");
  if (part === "similarity" || part === "ranks") return;
  if (body(part).childElementCount && !body(part).querySelector(".computing")) body(part).classList.add("stale");
  else body(part).replaceChildren(make("p", { className: "computing" }, "computing"));
}

export function clear() {
  for (const section of document.querySelectorAll("[aria-busy]")) {
    section.removeAttribute("aria-busy");
    const inner = section.querySelector(".body");
    inner?.classList.remove("stale");
    if (inner?.querySelector(".computing")) inner.replaceChildren();
  }
}

export function show(answer, page) {
  const { part } = answer, small = page.state.model.image_size < 128;
  place(part).removeAttribute("aria-busy");
  if (body(part)) body(part).classList.remove("stale");
  if (answer.lacks) sentence(part, answer.lacks);
  else SHOWS[part](answer, page, small);
}

const SHOWS = {
  similarity({ cosines }, page) {
    document.getElementById("fits").replaceChildren(...cosines.map((cosine, which) => {
      const bar = make("i", {}), half = Math.min(1, Math.abs(cosine)) * 50;
      bar.style.left = `${cosine < 0 ? 50 - half : 50}%`;
      bar.style.width = `${half}%`;
      return make("tr", {},
        make("td", {}, make("span", { className: "kind" }, KINDS[which]), page.captions[which].trim()),
        make("td", { className: "n value" }, exact(cosine), make("span", { className: "meter", "aria-hidden": "true" }, bar)),
        make("td", { className: "n rank" }, "..."), make("td", { className: "n rank" }, "..."));
    }));
  },

  ranks({ ranks, captions, pictures, nearest }) {
    const many = (value) => value.toLocaleString("en-US");
    [...document.getElementById("fits").rows].forEach((row, which) => {
      const cells = row.querySelectorAll(".rank");
      if (!cells.length || !ranks[which]) return;
      cells[0].textContent = many(ranks[which].caption);
      cells[1].textContent = many(ranks[which].picture);
    });
    document.getElementById("places").textContent =
      `A caption's place is that among the ${many(captions)} captions of the validation pictures, for this picture; ` +
      `the picture's that among these ${many(pictures)} pictures, for the caption. 1 is best.`;
    const open = document.querySelector("#nearest details")?.open ?? false;
    document.getElementById("nearest").replaceChildren(
      make("details", { open }, make("summary", {}, "the captions that fit this picture best"),
        make("ol", { className: "listed" }, ...nearest.map((one) =>
          make("li", {}, make("b", {}, exact(one.cosine)),
            make("span", {}, one.text, one.own ? make("span", { className: "pass" }, " its own") : null))))));
  },

  words(answer, page) {
    const { captions, side, similarity } = answer, canvas = make("canvas", { role: "img", tabIndex: 0 }), scale = make("canvas");
    const low = make("span"), high = make("span"), where = make("span", { className: "at", role: "status" });
    const same = make("input", { type: "checkbox" }), all = captions.flatMap((one) => one.scores);
    const range = (scores) => [Math.min(...scores.flat()), Math.max(...scores.flat())];
    let word = "", scores = all[0] ?? [], cursor = null;

    function tell(patch) {
      where.textContent = `row ${Math.floor(patch / side) + 1}, column ${(patch % side) + 1}: ${exact(scores[patch])}`;
    }
    function draw() {
      const bounds = range(same.checked ? all : [scores]), best = scores.indexOf(Math.max(...scores));
      const paint = () => drawHeat(canvas, page.picture, scores, side, bounds, page.settings.inferno, cursor);
      page.picture.decode().then(paint, () => {});
      [low.textContent, high.textContent] = bounds.map(exact);
      canvas.setAttribute("aria-label", `Scores of the word ${word} over the picture: from ${exact(Math.min(...scores))} to ` +
        `${exact(scores[best])}, the highest in row ${Math.floor(best / side) + 1} and column ${(best % side) + 1} of ${side}. ` +
        "Arrow keys read single patches.");
      if (cursor === null) tell(best);
      else tell(cursor);
    }
    function move(to) {
      cursor = Math.min(side * side - 1, Math.max(0, to));
      draw();
    }
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const from = cursor ?? scores.indexOf(Math.max(...scores)), to = from + steps[event.key];
      if (to >= 0 && to < side * side) move(to);
    });
    const patchOf = (event) => {
      const box = canvas.getBoundingClientRect(), of = (at, size) => Math.min(side - 1, Math.max(0, Math.floor((at / size) * side)));
      return of(event.clientY - box.top, box.height) * side + of(event.clientX - box.left, box.width);
    };
    canvas.addEventListener("pointermove", (event) => tell(patchOf(event)));
    canvas.addEventListener("click", (event) => move(patchOf(event)));
    same.addEventListener("change", draw);

    const peak = (one) => Math.max(...one), own = captions[0].scores;
    const first = own.findIndex((one) => peak(one) === Math.max(...own.map(peak)));
    const groups = captions.map((caption, which) => make("div", {},
      make("p", { className: "note" }, KINDS[which]),
      make("div", { className: "words" }, ...caption.words.map((text, place) => {
        const input = make("input", { type: "radio", name: "word", checked: which === 0 && place === first });
        input.addEventListener("change", () => { word = text; scores = caption.scores[place]; draw(); });
        return make("label", {}, input, make("span", {}, text));
      }))));
    drawScale(scale, page.settings.inferno);
    if (!all.length) {
      sentence("words", "There is no word in these captions.");
      return;
    }
    if (first >= 0) [word, scores] = [captions[0].words[first], own[first]];
    body("words").replaceChildren(
      make("p", { className: "note" }, `Each patch's score with the chosen word (${similarity}); light is high. ${answer.note ?? ""}`),
      make("div", { className: "heat" },
        make("fieldset", {}, make("legend", {}, "Choose a word"), ...groups,
          make("label", { className: "same" }, same, "one scale for all words")),
        make("div", {}, canvas, make("div", { className: "scale" }, low, scale, high), where)));
    draw();
  },

  masks(answer, page, small) {
    const names = { mim: "hidden from TG-MIM", captioning: "hidden from captioning" }, figures = [], said = [];
    for (const [name, title] of Object.entries(names)) {
      const mask = answer[name];
      if (!mask) {
        said.push(`Nothing is ${title}.`);
        continue;
      }
      mask.pictures.forEach((picture, which) =>
        figures.push(figure(picture, `Patches ${title} for the ${KINDS[which]}, in red`, small, `${title}, ${KINDS[which]}`)));
      const chance = percent(mask.hidden / answer.patches);
      const share = mask.same === null ? "" : `; the wrong caption hides ${percent(mask.same)} of these, too (by chance ${chance})`;
      said.push(`${title[0].toUpperCase()}${title.slice(1)}: ${mask.hidden} of ${answer.patches} patches${share}.`);
    }
    body("masks").replaceChildren(
      note(`Red patches are hidden: from TG-MIM those that fit the caption best, from captioning those that fit it worst. ${answer.note ?? ""}`),
      make("div", { className: "four" }, ...figures), make("p", { className: "note after" }, said.join(" ")));
  },

  reconstruction(answer, page, small) {
    const errors = answer.rebuilt.map((one) => one.error), better = errors.length > 1 && errors[0] < errors[1] ? 0 : 1;
    const figures = answer.rebuilt.map((one, which) => figure(one.picture, `Rebuilt with the ${KINDS[which]}`, small,
      `rebuilt, ${KINDS[which]}`, make("br"), "L1 ",
      make("span", { className: errors.length > 1 && which === better ? "pass" : "" }, one.error.toFixed(4))));
    body("reconstruction").replaceChildren(
      note(`${answer.hidden} of ${answer.patches} patches, those that fit the caption best, are hidden and rebuilt from the rest and a ` +
        `caption. L1 is the error over them in normalised pixels; lower is better. ${answer.note ?? ""}`),
      make("div", { className: "four" }, figure(page.picture.src, "The picture", small, "the picture"),
        figure(answer.seen, "The picture without the hidden patches", small, "what the model sees"), ...figures));
  },

  captions({ written, most }) {
    body("captions").replaceChildren(
      make("dl", { className: "written" }, ...written.flatMap((one) => [
        make("dt", {}, one.beams === 1 ? "greedy" : `${one.beams} beams`), make("dd", {}, one.text || "(empty)")])),
      make("p", { className: "note after" }, `At most ${most} tokens.`));
  },

  neighbours(answer, page, small) {
    const row = (found) => make("div", { className: "six" }, ...found.map((one) =>
      figure(one.picture, one.text, small, make("b", {}, exact(one.cosine)), make("br"), one.text)));
    const lacks = (text) => make("p", { className: "lacks" }, text);
    const parts = answer.samples ? [note("Among the validation pictures, with their cosines."), row(answer.samples)] : [lacks(answer.samples_lack)];
    if (answer.folder_name) parts.push(make("h3", {}, `In ${answer.folder_name}`));
    if (answer.folder) parts.push(row(answer.folder.pictures), note(answer.folder.note, "after"));
    else if (answer.folder_name) parts.push(lacks(answer.folder_lack));
    body("neighbours").replaceChildren(...parts.filter((part) => part !== null));
  },
};

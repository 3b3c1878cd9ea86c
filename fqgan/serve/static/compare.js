// Compare: two tokenizers on one picture, with a divider.
import { postPicture } from "./api.js";
import { decibels, field, h, latest, noticePlace, picture, say, select } from "./dom.js";
import { Picker, readSource, sourceText } from "./source.js";

const ORIGINAL = "original";

export function create(app) {
  if (!app.codecs.length) return app.needs("a tokenizer", "fqgan serve runs/first runs/second");
  const names = app.codecs.map((each) => each.name);
  const state = { left: names.length > 1 ? names[0] : ORIGINAL, right: names.at(names.length > 1 ? 1 : 0), source: null };
  const newest = latest();
  const notice = noticePlace();
  const options = [...names.map((name) => [name, name]), [ORIGINAL, "Original picture"]];
  const chooser = (key) => select(options, state[key], (value) => { state[key] = value; start(); });
  const left = chooser("left");
  const right = chooser("right");
  const picker = new Picker(app, { label: "Picture", onchange: (source) => { state.source = source; start(); } });
  const images = { left: picture(null, ""), right: picture(null, "") };
  const tags = { left: h("span.tag", {}), right: h("span.tag", {}) };
  const divider = h("input.divider", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Divider", oninput: () => { move(); app.changed(); } });
  const frame = h("div.frame.compare", {}, images.left, h("div.over", {}, images.right), tags.left, tags.right, h("i.handle", { "aria-hidden": "true" }), divider);
  const table = h("div.scroll", {});
  const note = names.length > 1 ? null
    : h("p.hint", {}, "This server has one tokenizer, which is compared with the original. Start it with two to compare them: ", h("code", {}, "fqgan serve runs/first runs/second"));
  const pair = h("div.pair", {});
  const stage = h("div.stage", {}, notice.element, h("div.beside", {}, frame, h("div.below", {}, table, pair)));
  picker.acceptDrops(frame);
  const element = h("div.split", {},
    h("div.side", {}, field("Left", left), field("Right", right), note, picker.element), stage);
  frame.hidden = true;

  function move() {
    frame.style.setProperty("--at", `${divider.value}%`);
    divider.setAttribute("aria-valuetext", `${divider.value} % ${state.left}, the rest ${state.right}`);
  }

  async function start() {
    app.changed();
    if (!state.source) return;
    notice.clear();
    stage.classList.add("busy");
    try {
      const wanted = [...new Set([state.left, state.right])].filter((name) => name !== ORIGINAL);
      if (!wanted.length) wanted.push(names[0]);
      const found = new Map(await newest((signal) => Promise.all(wanted.map(async (name) =>
        [name, await postPicture("api/reconstruct", name, state.source, signal)]))));
      show(found);
    } catch (error) {
      if (error.name === "AbortError") return;
      notice.show(error, start);
    }
    stage.classList.remove("busy");
  }

  function show(found) {
    const any = found.get(state.right) ?? found.get(state.left) ?? [...found.values()][0];
    const [height, width] = any.size;
    frame.hidden = false;
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.setProperty("--ratio", width / height);
    const looks = {};
    for (const key of ["left", "right"]) {
      const name = state[key];
      const result = found.get(name);
      looks[key] = name === ORIGINAL ? any.original : result.reconstruction;
      images[key].src = looks[key];
      images[key].alt = name === ORIGINAL ? "The original" : `Reconstruction by ${name}`;
      tags[key].textContent = name === ORIGINAL ? "Original" : `${name} · ${decibels(result.psnr)}`;
    }
    const shown = [["Original", any.original], ...[...found].map(([name, result]) => [name, result.reconstruction])];
    pair.replaceChildren(...shown.map(([name, source]) => h("figure", {}, h("figcaption", {}, name),
      h("div.frame", { style: { "aspect-ratio": `${width} / ${height}` } }, picture(source, name)))));
    table.replaceChildren(scores(found));
    move();
    say([...found].map(([name, result]) => `${name}: ${decibels(result.psnr, 1)}`).join(", "));
  }

  function scores(found) {
    const entries = [...found];
    const psnr = (result) => result.psnr ?? Infinity;
    const best = Math.max(...entries.map(([, result]) => psnr(result)));
    const row = (label, cell) => h("tr", {}, h("th", { scope: "row" }, label), entries.map((entry) => cell(...entry)));
    const bits = (name, result) => result.codes.reduce((sum, map, i) =>
      sum + map.length * map[0].length * Math.log2(app.model(name).codebook_sizes[i]), 0);
    return h("table.scores", {},
      h("thead", {}, h("tr", {}, h("td", {}), entries.map(([name]) => h("th", { scope: "col" }, name)))),
      h("tbody", {},
        row("PSNR", (name, result) => h(entries.length > 1 && psnr(result) === best ? "td.best" : "td", {}, decibels(result.psnr))),
        row("Codes", (name, result) => h("td", {}, `${result.codes.length} × ${result.codes[0].length} × ${result.codes[0][0].length}`)),
        row("Bits a pixel", (name, result) => h("td", {}, (bits(name, result) / (result.size[0] * result.size[1])).toFixed(3))),
        row("Codes used", (name, result) => h("td", {}, result.codes.map((map) => new Set(map.flat()).size).join(" + ")))));
  }

  return {
    element,
    state: () => ({ left: state.left, right: state.right, picture: sourceText(state.source), at: divider.value }),
    apply(params) {
      for (const key of ["left", "right"]) {
        const given = params.get(key);
        if (options.some(([name]) => name === given)) state[key] = given;
      }
      left.value = state.left;
      right.value = state.right;
      const at = Number(params.get("at") ?? 50);
      divider.value = Number.isFinite(at) ? at : 50;
      state.source = readSource(app, params.get("picture"))
        ?? (state.source?.kind === "file" ? state.source : readSource(app, `photo:${app.pictures[0]?.name}`));
      picker.set(state.source);
      move();
      return start();
    },
  };
}

// Reconstruct: a picture, its reconstruction, each factor alone, and the codes.
import { postPicture } from "./api.js";
import { codeColour, codeMap, factorColour } from "./colours.js";
import { decibels, dot, field, h, latest, noticePlace, picture, say, select } from "./dom.js";
import { Picker, readSource, sourceName, sourceText } from "./source.js";
import { sharing, Views } from "./views.js";

const PATCHES = 10;

export function create(app) {
  if (!app.codecs.length) return app.needs("a tokenizer", "fqgan serve runs/first");
  const state = { model: app.codecs[0].name, source: null, result: null };
  const newest = latest();
  const notice = noticePlace();
  const models = select(app.codecs.map((each) => [each.name, each.name]), state.model, (name) => {
    state.model = name;
    start();
  });
  const picker = new Picker(app, {
    label: "Picture",
    onchange: (source) => { state.source = source; start(); },
  });
  const facts = h("dl.facts", {});
  const inspector = h("section.inspector", { "aria-label": "Codes of a position" });
  const views = new Views({ onposition: inspect, onpin: (position, factor) => pinned(position, factor) });
  const stage = h("div.stage", {}, notice.element, views.element);
  picker.acceptDrops(stage);
  const element = h("div.split", {},
    h("div.side", {}, field("Tokenizer", models), picker.element),
    stage,
    h("div.side.below", {}, facts, inspector));

  async function start() {
    app.changed();
    if (!state.source) return;
    notice.clear();
    element.classList.add("busy");
    stage.setAttribute("aria-busy", "true");
    try {
      const result = await newest((signal) => postPicture("api/reconstruct", state.model, state.source, signal));
      show(result);
      say(`${sourceName(state.source)} reconstructed, PSNR ${decibels(result.psnr, 1)}.`);
    } catch (error) {
      if (error.name === "AbortError") return;
      notice.show(error, start);
    }
    element.classList.remove("busy");
    stage.removeAttribute("aria-busy");
  }

  function show(result) {
    state.result = result;
    const model = app.model(state.model);
    const focused = [...views.element.querySelectorAll(".frame")].indexOf(document.activeElement);
    views.clear();
    views.add(["Original"], picture(result.original, ""), null, "Original");
    views.add(["Reconstruction"], picture(result.reconstruction, ""), null, "Reconstruction");
    model.factors.forEach((factor, i) => {
      const alone = result.alone?.[factor];
      if (alone) views.add([dot(factorColour(i)), `${factor} alone`], picture(alone, ""), i, `${factor} alone`);
      views.add([dot(factorColour(i)), `${factor} codes`], codeMap(result.codes[i]), i, `Codes of ${factor}`);
    });
    views.element.style.setProperty("--columns", 1 + model.factors.length);
    views.setCodes(result.codes, result.size);
    views.element.querySelectorAll(".frame")[focused]?.focus();
    const [height, width] = result.size;
    const grid = `${result.codes[0].length} × ${result.codes[0][0].length}`;
    facts.replaceChildren(
      ...fact("PSNR", decibels(result.psnr)),
      ...fact("Pixels", `${height} × ${width}`),
      ...fact("Codes", `${model.factors.length} × ${grid}`),
      ...model.factors.flatMap((name, i) => fact([dot(factorColour(i)), `${name} used`],
        `${result.usage?.[name] ?? new Set(result.codes[i].flat()).size} of ${model.codebook_sizes[i]}`)));
  }

  const fact = (name, value) => [h("dt", {}, name), h("dd", {}, value)];

  function patch([row, column]) {
    const [height, width] = state.result.size;
    const cells = state.result.codes[0];
    const share = (index, count) => (count > 1 ? `${(100 * index) / (count - 1)}%` : "0");
    return h("i.patch", {
      "aria-hidden": "true",
      style: {
        "background-image": `url(${state.result.original})`,
        "background-size": `${cells[0].length * 100}% ${cells.length * 100}%`,
        "background-position": `${share(column, cells[0].length)} ${share(row, cells.length)}`,
        "aspect-ratio": `${width / cells[0].length} / ${height / cells.length}`,
      },
    });
  }

  function inspect(position, active) {
    if (!position) {
      inspector.replaceChildren(h("p.hint", {},
        "Point at a picture, tap it, or move with the arrow keys: its codes appear here, and all places with the same code light up."));
      return;
    }
    const [row, column] = position;
    const model = app.model(state.model);
    inspector.replaceChildren(
      h("h2", {}, `Row ${row + 1}, column ${column + 1}`),
      ...model.factors.map((name, i) => {
        const code = state.result.codes[i][row][column];
        const others = sharing(state.result.codes[i], position);
        return h("button.code", {
          type: "button", "aria-pressed": String(i === active), onclick: () => views.pin(position, i),
        },
        h("span.line", {},
          h("span", {}, dot(factorColour(i)), name, h("i.swatch", { style: { background: codeColour(code) } }), h("b", {}, code)),
          h("small", {}, others.length ? `${others.length} more` : "only here")),
        h("span.patches", {}, patch(position), ...others.slice(0, PATCHES - 1).map(patch)));
      }));
  }

  function pinned(position, factor) {
    app.changed();
    if (!position) return;
    const name = app.model(state.model).factors[factor];
    const code = state.result.codes[factor][position[0]][position[1]];
    say(`Row ${position[0] + 1}, column ${position[1] + 1}: ${name} code ${code}, `
      + `${sharing(state.result.codes[factor], position).length} more positions.`);
  }

  inspect(null);
  return {
    element,
    state: () => ({
      model: state.model,
      picture: sourceText(state.source),
      at: views.pinned?.join(","),
      factor: views.pinned ? views.factor : null,
    }),
    apply(params) {
      const model = app.codecs.find((each) => each.name === params.get("model"));
      if (model) state.model = models.value = model.name;
      state.source = readSource(app, params.get("picture"))
        ?? (state.source?.kind === "file" ? state.source : readSource(app, `photo:${app.pictures[0]?.name}`));
      picker.set(state.source);
      const at = (params.get("at") ?? "").split(",").map(Number);
      views.pinned = at.length === 2 && at.every((each) => Number.isInteger(each) && each >= 0) ? at : null;
      views.factor = Number(params.get("factor")) || 0;
      if (!state.source) inspector.replaceChildren(h("p.hint", {}, "Choose a picture, and its codes appear here."));
      return start();
    },
  };
}

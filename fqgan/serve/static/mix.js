// Mix: factors of one picture with factors of another, up to a position.
import { post, postPicture } from "./api.js";
import { factorColour } from "./colours.js";
import { button, dot, field, h, latest, noticePlace, picture, say, segments, select, slider } from "./dom.js";
import { Picker, readSource, sourceName, sourceText } from "./source.js";

/** The codes of a mix: factors of `fromB` come from b up to position `until` in reading order, all else from a. */
export function mixCodes(a, b, fromB, until) {
  return a.map((map, f) => map.map((row, y) =>
    row.map((code, x) => (fromB[f] && y * row.length + x < until ? b[f][y][x] : code))));
}

export function create(app) {
  if (!app.codecs.length) return app.needs("a model", "fqgan serve runs/first");
  let model = app.codecs[0];
  let fromB = [];
  let asked = null; // the position of an address, until both pictures are there
  const sides = { a: side("a", "A"), b: side("b", "B") };
  let drawing = false;
  let again = false;
  const notice = noticePlace();
  const models = select(app.codecs.map((each) => [each.name, each.name]), model.name, (name) => {
    model = app.model(name);
    adopt(null);
    for (const each of Object.values(sides)) if (each.source?.kind === "codes") each.source = null;
    load(sides.a);
    load(sides.b);
  });
  const rows = h("div.rows", {});
  let total = 1;
  const until = slider("Positions from B", {
    min: 0, max: 1, step: 1, value: 1, format: (value) => `${value} of ${total}`, oninput: () => { app.changed(); draw(); },
  });
  const image = picture(null, "");
  const edge = h("i.edge", { "aria-hidden": "true" });
  const frame = h("div.frame", {}, image, edge);
  const keep = button("Keep", () => {
    app.tray.keep({ codes: mixed(), picture: image.src, label: image.alt, model: generator()?.name ?? model.name, codec: model.name });
    say("Kept for Edit and Mix.");
  });
  const swap = button("Swap A and B", () => {
    const held = sides.a.source;
    sides.a.source = sides.b.source;
    sides.b.source = held;
    load(sides.a);
    load(sides.b);
  });
  const result = h("figure.outcome", {}, h("figcaption", {}, "Mix"), frame, h("div.actions", {}, keep, swap));
  const element = h("div.stack", {},
    h("div.narrow", {}, field("Tokenizer", models)),
    notice.element,
    h("div.three", {}, sides.a.element, result, sides.b.element),
    h("section.panelbox", { "aria-label": "What comes from where" }, rows, until.element),
    app.tray.view());
  app.tray.watch(() => { sides.a.picker.draw(); sides.b.picker.draw(); });

  function side(key, label) {
    const shown = picture(null, "");
    const own = { key, label, source: null, codes: null, image: shown, newest: latest() };
    own.frame = h("div.frame", {}, shown);
    own.picker = new Picker(app, {
      label: `Picture ${label}`,
      kept: () => app.tray.of(model.name),
      onchange: (source) => { own.source = source; load(own); },
    });
    own.element = h("div.mixside", {}, h("figure", {}, h("figcaption", {}, label), own.frame), own.picker.element);
    own.picker.acceptDrops(own.frame);
    return own;
  }

  const generator = () => app.generators.find((each) => app.codec(each) === model.name);
  const fits = () => sides.a.codes && sides.b.codes
    && sides.a.codes[0].length === sides.b.codes[0].length && sides.a.codes[0][0].length === sides.b.codes[0][0].length;
  const mixed = () => mixCodes(sides.a.codes, sides.b.codes, fromB, until.value);

  function adopt(chosen) {
    models.value = model.name;
    const last = model.factors.length - 1;
    fromB = model.factors.map((name, i) => (chosen === null ? i === last : chosen.split(",").includes(name)));
    rows.replaceChildren(...model.factors.map((name, i) => {
      const choice = segments(`${name} from`, [["a", "A"], ["b", "B"]], fromB[i] ? "b" : "a", (key) => {
        fromB[i] = key === "b";
        app.changed();
        draw();
      });
      return h("div.line", {}, h("span", {}, dot(factorColour(i)), `${name} from`), choice.element);
    }));
  }

  async function load(own) {
    own.codes = null;
    own.picker.set(own.source);
    app.changed();
    if (!own.source) return;
    notice.clear();
    own.element.classList.add("busy");
    try {
      await own.newest(async (signal) => {
        const codes = own.source.kind === "codes" ? own.source.codes
          : (await postPicture("api/encode", model.name, own.source, signal)).codes;
        const decoded = await post("api/decode", { model: model.name, codes }, signal);
        own.codes = codes;
        own.image.src = decoded.images[0];
        own.image.alt = `${own.label}: ${sourceName(own.source)}, decoded`;
        own.frame.style.aspectRatio = ratio(codes);
      });
    } catch (error) {
      if (error.name === "AbortError") return;
      notice.show(error, () => load(own));
    }
    own.element.classList.remove("busy");
    if (!fits()) {
      if (sides.a.codes && sides.b.codes) notice.show({ sentence: "A and B have grids of different sizes. Choose pictures of one size.", final: true });
      return;
    }
    const count = own.codes[0].length * own.codes[0][0].length;
    const full = until.value === total;
    total = count;
    until.range(0, count);
    until.value = asked ?? (full ? count : Math.min(until.value, count));
    asked = null;
    app.changed();
    draw();
  }

  function ratio(codes) {
    const cell = app.cell(model);
    return `${codes[0][0].length * cell[1]} / ${codes[0].length * cell[0]}`;
  }

  /** Decodes the mix: one request at a time, and whatever changed meanwhile afterwards. */
  async function draw() {
    again = true;
    if (drawing) return;
    drawing = true;
    try {
      while (again && fits()) {
        again = false;
        showEdge();
        const { images } = await post("api/decode", { model: model.name, codes: mixed() });
        image.src = images[0];
        image.alt = `mix of ${sourceName(sides.a.source)} and ${sourceName(sides.b.source)}`;
        keep.disabled = false;
      }
    } catch (error) {
      notice.show(error, draw);
    } finally {
      drawing = false;
    }
  }

  function showEdge() {
    const [rows, columns] = [sides.a.codes[0].length, sides.a.codes[0][0].length];
    frame.style.aspectRatio = ratio(sides.a.codes);
    edge.style.setProperty("--top", `${(100 * Math.floor(until.value / columns)) / rows}%`);
    edge.hidden = until.value === 0 || until.value === rows * columns;
  }

  keep.disabled = true;
  return {
    element,
    shown: () => { sides.a.picker.draw(); sides.b.picker.draw(); },
    state: () => ({
      model: model.name,
      a: sourceText(sides.a.source),
      b: sourceText(sides.b.source),
      fromb: model.factors.filter((_, i) => fromB[i]).join(",") || "none",
      until: asked ?? (fits() ? until.value : null),
    }),
    async apply(params) {
      model = app.codecs.find((each) => each.name === params.get("model")) ?? model;
      adopt(params.get("fromb"));
      const position = params.get("until");
      asked = position !== null && /^\d+$/.test(position) ? Number(position) : null;
      const kept = app.tray.of(model.name);
      const first = [...kept, ...app.pictures.map(({ name }) => ({ kind: "photo", name }))];
      const choose = (key, i) => {
        const given = readSource(app, params.get(key));
        const known = given && kept.find((each) => sourceText(each) === sourceText(given));
        return known ?? given ?? (sides[key].source?.kind === "file" ? sides[key].source : null) ?? first[i] ?? null;
      };
      sides.a.source = choose("a", 0);
      sides.b.source = choose("b", sourceText(sides.a.source) === sourceText(first[1]) ? 0 : 1);
      await Promise.all([load(sides.a), load(sides.b)]);
    },
  };
}

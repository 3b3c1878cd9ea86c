// Edit: draws a painted region again, of the factors that may change.
import { post, postPicture, ServerError } from "./api.js";
import { packRegion, unpackRegion } from "./address.js";
import { factorColour } from "./colours.js";
import { dot, field, h, latest, noticePlace, say, select } from "./dom.js";
import { Painter } from "./painter.js";
import { Results } from "./results.js";
import { Sampling } from "./sampling.js";
import { Picker, readSource, sourceText } from "./source.js";

export function create(app) {
  if (!app.generators.length) return app.needs("a generator", "fqgan serve runs/far");
  let model = app.generators[0];
  let source = null;
  let codes = null;
  let free = null; // a boolean a factor: may it change?
  const newest = latest();
  const notice = noticePlace();
  const sampling = new Sampling({ empty: "None in particular", most: 8, onchange: () => app.changed() });
  const models = select(app.generators.map((each) => [each.name, each.name]), model.name, (name) => {
    model = app.model(name);
    adopt(new URLSearchParams({ seed: sampling.seed.value, num: sampling.count.value }));
    load();
  });
  const picker = new Picker(app, {
    label: "Picture",
    kept: () => app.tray.of(app.codec(model)),
    onchange: (chosen) => {
      source = chosen;
      guess();
      load();
    },
  });
  app.tray.watch(() => picker.draw());
  const painter = new Painter({ onchange: () => { ready(); app.changed(); } });
  const factors = h("fieldset.factors", {});
  const results = new Results(app, {
    idle: "Paint over the part of the picture that may change, with the pointer, a finger, or the arrow keys and Space. "
      + "Then draw it again: the variants appear here, and everything else stays as it is.",
  });
  const go = h("button.primary", { type: "submit" }, "Draw again");
  const why = h("p.hint", { id: "edit-why" });
  go.setAttribute("aria-describedby", why.id);
  const form = h("form.side.settings", { onsubmit: (event) => { event.preventDefault(); draw(); } },
    factors, sampling.element, go, why);
  // in the order of work, which a narrow screen shows; a wide one has three columns
  const element = h("div.bench", {},
    h("div.side.pick", {}, field("Generator", models), picker.element),
    h("div.easel", {}, notice.element, painter.element),
    form,
    h("div.made", {}, results.element),
    h("div.keptbelow", {}, app.tray.view()));

  function adopt(params) {
    models.value = model.name;
    sampling.setModel(model, params);
    const chosen = params.get("free");
    free = model.factors.map((name, i) => (chosen === null ? i === 0 || model.factors.length === 1 : chosen.split(",").includes(name)));
    factors.replaceChildren(h("legend", {}, "Within the region"), ...model.factors.map((name, i) => h("label.check", {},
      h("input", { type: "checkbox", checked: free[i], onchange: (event) => { free[i] = event.target.checked; ready(); app.changed(); } }),
      dot(factorColour(i)), `Redraw ${name}`)));
  }

  function ready() {
    const reasons = [
      [!source, "Choose a picture first."],
      [!codes, "The picture is being encoded."],
      [!painter.any(), "Paint where the picture may change."],
      [!free.some(Boolean), "Tick at least one factor that may change."],
    ];
    const reason = reasons.find(([holds]) => holds)?.[1];
    go.disabled = Boolean(reason);
    why.textContent = reason ?? "";
    why.hidden = !reason;
  }

  /** The class of a picture that was drawn, or of a packaged one that is called like a class. */
  function guess() {
    const known = source?.kind === "photo" ? model.classes?.indexOf(source.name) : source?.class;
    if (Number.isInteger(known) && known >= 0) sampling.classes.set(known);
  }

  async function load(region = "") {
    codes = null;
    picker.set(source);
    painter.clear();
    ready();
    app.changed();
    if (!source) return;
    notice.clear();
    try {
      const [found, image] = await newest(async (signal) => {
        const own = source.kind === "codes" ? source.codes : (await postPicture("api/encode", model.name, source, signal)).codes;
        const decoded = await post("api/decode", { model: model.name, codes: own }, signal);
        return [own, decoded.images[0]];
      });
      if (String([found[0].length, found[0][0].length]) !== String(model.grid)) {
        throw new ServerError(`This picture has ${found[0].length} × ${found[0][0].length} positions, and ${model.name} draws `
          + `${model.grid.join(" × ")}. Choose another picture or generator.`, { final: true });
      }
      codes = found;
      painter.show(image, [codes[0].length, codes[0][0].length], app.cell(model));
      painter.set(unpackRegion(region, codes[0].length * codes[0][0].length));
    } catch (error) {
      if (error.name !== "AbortError") notice.show(error, () => load(region));
    }
    ready();
    app.changed();
  }

  function draw() {
    const region = painter.region;
    const [rows, columns] = painter.grid;
    const mask = free.map((may) => Array.from({ length: rows },
      (_, y) => Array.from({ length: columns }, (_, x) => !(may && region[y * columns + x]))));
    const chosen = sampling.classes.value;
    const values = sampling.values(chosen !== null);
    const classes = chosen === null ? null : Array(values.num).fill(chosen);
    say("Drawing the region again.");
    results.run({
      path: "api/edit",
      body: { model: model.name, codes, mask, classes, ...values },
      about: { model, size: [rows, columns], note: "edited" },
    });
  }

  return {
    element,
    shown: () => picker.draw(),
    state: () => ({
      model: model.name,
      picture: sourceText(source),
      region: codes ? packRegion(painter.region) : null,
      free: free && (model.factors.filter((_, i) => free[i]).join(",") || "none"),
      ...sampling.state(),
    }),
    apply(params) {
      model = app.generators.find((each) => each.name === params.get("model")) ?? model;
      adopt(params);
      const given = readSource(app, params.get("picture"));
      const kept = given && app.tray.items.find((each) => sourceText(each) === sourceText(given));
      source = kept ?? given ?? (source?.kind === "file" ? source : null)
        ?? app.tray.of(app.codec(model))[0] ?? readSource(app, `photo:${app.pictures[0]?.name}`);
      if (!params.get("picture")) guess();
      return load(params.get("region") ?? "");
    },
  };
}

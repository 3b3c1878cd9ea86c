// Generate: draws pictures of a class, position by position.
import { field, h, select } from "./dom.js";
import { Results } from "./results.js";
import { Sampling } from "./sampling.js";

export function create(app) {
  if (!app.generators.length) return app.needs("a generator", "fqgan serve runs/far");
  let model = app.generators[0];
  let drawn = false;
  const sampling = new Sampling({ empty: "Any: one class after the other", most: 8, onchange: changed });
  const models = select(app.generators.map((each) => [each.name, each.name]), model.name, (name) => {
    model = app.model(name);
    sampling.setModel(model, new URLSearchParams({ num: sampling.count.value, seed: sampling.seed.value }));
    describe();
    changed();
  });
  const note = h("p.hint", {});
  const results = new Results(app, { idle: "Pictures appear here while they are drawn.", vary });
  const go = h("button.primary", { type: "submit" }, "Draw");
  const form = h("form.side", { onsubmit: (event) => { event.preventDefault(); draw(); } },
    field("Generator", models), note, sampling.element, go);
  const element = h("div.split", {}, form, h("div.stage", {}, results.element, app.tray.view()));

  function changed() {
    drawn = false;
    placeholders();
    app.changed();
  }

  function placeholders() {
    if (results.grid.querySelector(".card")) return;
    const size = app.size(model);
    results.grid.replaceChildren(...Array.from({ length: sampling.count.value },
      () => h("div.placeholder", { "aria-hidden": "true", style: { "aspect-ratio": `${size[1]} / ${size[0]}`, "--columns": model.grid[1], "--rows": model.grid[0] } })));
  }

  function describe() {
    note.hidden = Boolean(model.num_classes);
    note.textContent = "This generator learned without classes.";
  }

  /** Classes of `count` pictures: the one that is chosen, or one after the other. */
  function classes(count) {
    if (!model.num_classes) return null;
    return Array.from({ length: count }, (_, i) => sampling.classes.value ?? i % model.num_classes);
  }

  async function draw() {
    const values = sampling.values();
    drawn = true;
    app.changed();
    await results.run({
      path: "api/generate",
      body: { model: model.name, ...values, classes: classes(values.num) },
      about: { model, size: app.size(model) },
    });
    placeholders();
  }

  function vary({ item, element: after }, factor) {
    const made = app.model(item.model);
    const { path, ...request } = item.request;
    const next = { ...request, classes: item.class === null ? null : [item.class], num: 1, seed: item.seed + 1 };
    const about = { model: made, size: app.size(made) };
    if (factor === null) return results.run({ path, body: next, about, after });
    const keep = made.factors.filter((_, i) => i !== factor);
    return results.run({ path: "api/edit", body: { ...next, codes: item.codes, keep }, about, after });
  }

  return {
    element,
    state: () => ({ model: model.name, ...sampling.state(), draw: drawn ? 1 : null }),
    apply(params) {
      model = app.generators.find((each) => each.name === params.get("model")) ?? model;
      models.value = model.name;
      sampling.setModel(model, params);
      describe();
      placeholders();
      drawn = params.get("draw") === "1";
      if (drawn) draw();
    },
  };
}

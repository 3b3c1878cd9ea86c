// About: the models of this server, their facts and cards.
import { factorColour } from "./colours.js";
import { dot, h } from "./dom.js";
import { markdown } from "./markdown.js";

const UNITS = [[1e9, "billion"], [1e6, "million"], [1e3, "thousand"]];

function amount(number) {
  const [unit, word] = UNITS.find(([size]) => number >= size) ?? [1, ""];
  const value = number / unit;
  return `${value >= 100 || unit === 1 ? Math.round(value) : value.toFixed(1)} ${word}`.trim();
}

function facts(app, model) {
  const [height, width] = model.grid;
  const classes = model.num_classes ? `${model.num_classes}${model.classes?.length ? "" : ", without names"}` : "none: it learned without classes";
  const sizes = model.factors.map((name, i) => h("span.factorfact", {}, dot(factorColour(i)), `${name}, ${model.codebook_sizes[i]} codes`));
  const [rows, columns] = app.size(model);
  const lines = [
    ["Parameters", amount(model.parameters)],
    ["Factors", sizes],
    ["Grid", `${height} × ${width} positions`],
    ["Picture", `${rows} × ${columns} pixels`],
    ...(model.kind === "generator" ? [["Classes", classes], ["Tokenizer", model.tokenizer ?? "its own"]] : []),
  ];
  return h("table.sheet", {}, h("caption.unseen", {}, `Facts of ${model.name}`),
    h("tbody", {}, lines.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))));
}

export function create(app) {
  const element = h("div.stack", {},
    h("p.lead", {}, "A tokenizer turns a picture into a small grid of integers, with several codes at each position, one of each factor. "
      + "A generator draws such grids, and the tokenizer makes pictures of them."),
    app.models.length ? null : h("p.hint", {}, "This server has no models."),
    h("div.models", {}, app.models.map((model) => h("article.model", {},
      h("header", {}, h("h2", {}, model.name), h("span.kind", {}, model.kind)),
      facts(app, model),
      model.card ? h("details.cardtext", {}, h("summary", {}, "Model card"), h("div.prose", {}, markdown(model.card))) : null))),
    h("p.hint", {}, app.version ? `fqgan ${app.version}. ` : "", "Pictures that you choose go to this server and to no other. ",
      h("a", { href: "docs" }, "What programs can ask this server")));
  return { element, state: () => ({}), apply() {} };
}

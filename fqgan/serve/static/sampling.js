// The controls of drawing: class, guidance, temperature, top-k, seed. Generate and Edit share them.
import { numbers } from "./address.js";
import { factorColour } from "./colours.js";
import { button, dot, field, h, newId, slider } from "./dom.js";

const SHOWN = 60;
const folded = (text) => text.toLocaleLowerCase();

/** The name of a class, or its number where the model has no names. */
export const className = (model, number) =>
  number === null || number === undefined ? "" : (model.classes?.[number] ?? String(number));

/** A text field that searches the classes of a model. `value`: a class's number, or null. */
export class ClassSearch {
  constructor({ empty, onchange }) {
    Object.assign(this, { onchange, empty, model: null, value: null, active: -1, found: [] });
    const id = newId("classes");
    this.input = h("input", {
      type: "text", role: "combobox", autocomplete: "off", spellcheck: false, id: newId("class"),
      "aria-expanded": "false", "aria-controls": id, "aria-autocomplete": "list",
      oninput: () => this.open(this.input.value),
      onfocus: () => { this.input.select(); this.open(""); },
      onclick: () => this.options.hidden && this.open(""),
      onblur: () => this.close(),
      onkeydown: (event) => this.key(event),
    });
    this.options = h("ul.options", { id, role: "listbox", "aria-label": "Classes", hidden: true });
    this.element = h("div.search", {}, field("Class", this.input), this.options);
  }

  setModel(model, value) {
    this.model = model;
    this.element.hidden = !model.num_classes;
    this.set(value);
  }

  set(value) {
    const known = Number.isInteger(value) && value >= 0 && value < this.model.num_classes;
    this.value = known ? value : null;
    this.input.value = className(this.model, this.value);
    this.input.placeholder = this.empty;
  }

  /** Numbers of the classes that match: names that begin with the text first. */
  matches(text) {
    const wanted = folded(text.trim());
    const all = Array.from({ length: this.model.num_classes }, (_, i) => i);
    const name = (i) => folded(className(this.model, i));
    const begins = all.filter((i) => name(i).startsWith(wanted) || String(i) === wanted);
    return [...new Set([...begins, ...all.filter((i) => name(i).includes(wanted))])];
  }

  open(text) {
    const all = this.matches(text);
    this.found = text ? all.slice(0, SHOWN) : [null, ...all.slice(0, SHOWN)];
    this.active = text && this.found.length ? 0 : this.found.indexOf(this.value);
    this.options.replaceChildren(...this.found.map((number, i) => h("li", {
      role: "option", id: `${this.options.id}-${i}`,
      onpointerdown: (event) => { event.preventDefault(); this.take(number); },
    }, h("span", {}, number === null ? this.empty : className(this.model, number)),
    this.model.classes?.length && number !== null ? h("small", {}, number) : null)));
    const left = all.length - SHOWN;
    if (left > 0) this.options.append(h("li.more", { role: "presentation" }, `${left} more: type to find them`));
    if (!this.found.length) this.options.append(h("li.more", { role: "presentation" }, "No class has this name"));
    this.options.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.point();
  }

  point() {
    [...this.options.children].forEach((option, i) => {
      if (option.role === "option") option.setAttribute("aria-selected", String(i === this.active));
    });
    const option = this.options.children[this.active];
    if (option) {
      this.input.setAttribute("aria-activedescendant", option.id);
      this.options.scrollTop = option.offsetTop - this.options.clientHeight / 2;
    } else this.input.removeAttribute("aria-activedescendant");
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.options.hidden) this.open("");
      else this.active = Math.min(this.found.length - 1, Math.max(0, this.active + steps[event.key]));
      this.point();
    } else if (event.key === "Enter" && !this.options.hidden) {
      event.preventDefault();
      if (this.active >= 0) this.take(this.found[this.active]);
      else if (!this.input.value) this.take(null);
    } else if (event.key === "Escape") this.close();
  }

  take(number) {
    this.set(number);
    this.hide();
    this.onchange(this.value);
  }

  hide() {
    this.options.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  /** Leaves the field: an emptied one means no choice, other text goes back to the choice before. */
  close() {
    if (this.options.hidden) return;
    this.hide();
    if (!this.input.value.trim() && this.value !== null) this.take(null);
    else this.set(this.value);
  }
}

const list = (value, count, fallback) => {
  const given = Array.isArray(value) ? value : [value ?? fallback];
  return Array.from({ length: count }, (_, i) => given[i] ?? given[0] ?? fallback);
};

/** All controls of a model. `values()` are for requests, `state()` for the address. */
export class Sampling {
  constructor({ empty, most, onchange }) {
    this.onchange = onchange;
    this.classes = new ClassSearch({ empty, onchange: () => this.onchange() });
    this.count = slider("Pictures", { min: 1, max: most, step: 1, value: Math.min(4, most), oninput: onchange });
    this.seed = h("input", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, value: 0, oninput: onchange });
    const next = button("New", () => {
      this.seed.value = Math.floor(Math.random() * 1e6);
      onchange();
    }, "quiet", { "aria-label": "New seed" });
    this.fine = h("details.fine", {}, h("summary", {}, "Temperature and more"));
    this.element = h("div.sampling", {}, this.classes.element, this.count.element,
      h("div.with", {}, field("Seed", this.seed), next), this.fine);
  }

  setModel(model, params) {
    this.model = model;
    const k = model.factors.length;
    const defaults = model.defaults ?? {};
    const guidance = Number(params.get("guidance") ?? list(defaults.cfg_scale, 1, model.num_classes ? 2 : 1)[0]);
    const temperatures = numbers(params.get("temperature"), list(defaults.temperature, k, 1));
    const tops = numbers(params.get("topk"), list(defaults.top_k, k, 0));
    const chosen = params.get("class");
    this.classes.setModel(model, chosen ? Number(chosen) : null);
    this.count.value = Number(params.get("num")) || Math.min(4, Number(this.count.input.max));
    this.seed.value = Number(params.get("seed")) || 0;
    const two = (value) => value.toFixed(2);
    this.guidance = slider("Guidance", {
      min: 0, max: 10, step: 0.1, value: guidance, format: (value) => (value === 1 ? "off" : value.toFixed(1)), oninput: this.onchange,
    });
    this.temperature = model.factors.map((name, i) => slider(`${name} temperature`, {
      min: 0.1, max: 2, step: 0.05, value: temperatures[i] ?? temperatures[0], format: two, oninput: this.onchange, colour: factorColour(i),
    }));
    this.tops = model.factors.map((name, i) => h("input", {
      type: "number", min: 0, max: model.codebook_sizes[i], step: 1, value: tops[i] ?? tops[0], oninput: this.onchange,
      "aria-label": `${name} top-k`,
    }));
    const rows = model.factors.map((name, i) => h("div.factor", {}, this.temperature[i].element,
      h("div.line", {}, h("span", {}, dot(factorColour(i)), `${name} top-k`), this.tops[i])));
    const hint = h("small.hint", {}, "Top-k 0 means all codes.");
    const inside = h("div.inside", {}, model.num_classes ? this.guidance.element : null, rows, hint);
    this.fine.replaceChildren(this.fine.firstChild, inside);
  }

  number(input, fallback = 0) {
    const value = Math.round(Number(input.value));
    return Number.isFinite(value) && value >= 0 ? value : fallback;
  }

  /** `guided`: whether classes guide the drawing. */
  values(guided = this.model.num_classes > 0) {
    return {
      seed: this.number(this.seed),
      num: this.count.value,
      ...(guided ? { cfg_scale: this.guidance.value } : {}),
      temperature: this.temperature.map((each) => each.value),
      top_k: this.tops.map((each) => this.number(each)),
    };
  }

  state() {
    const values = this.values();
    return {
      class: this.classes.value,
      num: values.num,
      seed: values.seed,
      guidance: values.cfg_scale,
      temperature: values.temperature.join(","),
      topk: values.top_k.join(","),
    };
  }
}

// Pictures that were kept, for as long as this browser tab is open.
import { sourceText } from "./source.js";
import { button, h, picture } from "./dom.js";

const KEY = "fqgan-kept";
const LIMIT = 40;

export class Tray {
  constructor(app) {
    this.app = app;
    this.watchers = [];
    try {
      this.items = JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
    } catch {
      this.items = [];
    }
  }

  /** Keeps {codes, picture, label, model, codec, ...}; the same codes are kept once. */
  keep(item) {
    const source = { kind: "codes", ...item };
    if (!this.has(source)) this.items = [source, ...this.items].slice(0, LIMIT);
    this.changed();
    return source;
  }

  has(item) {
    const text = sourceText({ kind: "codes", codes: item.codes });
    return this.items.some((each) => sourceText(each) === text && each.codec === item.codec);
  }

  remove(item) {
    this.items = this.items.filter((each) => each !== item);
    this.changed();
  }

  /** Those whose codes a model can read. */
  of(codec) {
    return this.items.filter((each) => each.codec === codec);
  }

  watch(callback) {
    this.watchers.push(callback);
  }

  changed() {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this.items));
    } catch {
      // the browser's storage is full: the tray still lasts until the page is reloaded
    }
    for (const callback of this.watchers) callback();
  }

  /** The tray as a row of pictures with what can be done with each. */
  view() {
    const row = h("div.kept", {});
    const element = h("section.tray", { "aria-label": "Kept pictures" }, h("h2", {}, "Kept"), row);
    const draw = () => {
      element.hidden = !this.items.length;
      row.replaceChildren(...this.items.map((item) => h("figure", {},
        picture(item.picture, item.label),
        h("figcaption", {}, item.label),
        h("div.actions", {},
          button("Edit", () => this.app.go("edit", { model: item.model, picture: sourceText(item), class: item.class })),
          button("Mix", () => this.app.go("mix", { model: item.codec, a: sourceText(item) })),
          button("Remove", () => this.remove(item), "quiet", { "aria-label": `Remove ${item.label}` })))));
    };
    this.watch(draw);
    draw();
    return element;
  }
}

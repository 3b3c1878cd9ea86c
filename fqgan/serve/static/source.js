// Choosing a picture: a packaged one, a file (dropped, chosen or pasted), or one that was kept.
import { pictureAddress } from "./api.js";
import { packCodes, unpackCodes } from "./address.js";
import { button, h, newId, picture } from "./dom.js";

/** A source as text of an address; files of the reader's own have none. */
export function sourceText(source) {
  if (source?.kind === "photo") return `photo:${source.name}`;
  if (source?.kind === "codes") return `codes:${packCodes(source.codes)}`;
  return "";
}

/** The inverse of sourceText: null where the text names nothing. */
export function readSource(app, text) {
  const kind = (text ?? "").split(":", 1)[0];
  const rest = (text ?? "").slice(kind.length + 1);
  if (kind === "photo" && app.pictures.some((each) => each.name === rest)) return { kind, name: rest };
  const codes = kind === "codes" ? unpackCodes(rest) : null;
  return codes && { kind, codes };
}

export const sameSource = (a, b) =>
  Boolean(a && b) && (a === b || (a.kind !== "file" && sourceText(a) === sourceText(b)));

export const sourceName = (source) =>
  ({ photo: source?.name, file: source?.file?.name, codes: source?.label ?? "kept picture" })[source?.kind] ?? "nothing";

/** A picker. `kept()` gives sources of the tray that fit the model; `onchange(source)` is told of each choice. */
export class Picker {
  constructor(app, { label, kept = () => [], onchange }) {
    Object.assign(this, { app, kept, onchange, value: null });
    this.input = h("input.unseen", {
      type: "file", accept: "image/*", id: newId("file"), tabIndex: -1, "aria-label": `${label}: a file`,
      onchange: () => { if (this.input.files[0]) this.choose(this.fromFile(this.input.files[0])); this.input.value = ""; },
    });
    this.strip = h("div.thumbs", {});
    this.drop = button("Choose a file, or drop it here", () => this.input.click(), "drop");
    this.note = h("small.note", { hidden: true },
      "A link cannot carry a picture of your own: whoever opens it has to choose one.");
    this.element = h("fieldset.picker", {}, h("legend", {}, label), this.strip, this.drop, this.input, this.note);
    this.acceptDrops(this.element);
    this.draw();
  }

  acceptDrops(element) {
    const over = (on) => (event) => { event.preventDefault(); this.element.classList.toggle("over", on); };
    element.addEventListener("dragover", over(true));
    element.addEventListener("dragleave", over(false));
    element.addEventListener("drop", (event) => {
      over(false)(event);
      const file = [...event.dataTransfer.files].find((each) => each.type.startsWith("image/"));
      if (file) this.choose(this.fromFile(file));
    });
  }

  fromFile(file) {
    this.own = { kind: "file", file, url: URL.createObjectURL(file) };
    return this.own;
  }

  choose(source) {
    this.set(source);
    this.onchange(source);
  }

  /** Shows a choice without telling anyone. */
  set(source) {
    this.value = source;
    if (source?.kind === "file") this.own = source;
    this.draw();
  }

  thumb(source, image, name) {
    const on = sameSource(source, this.value);
    return h("button.thumb", {
      type: "button", title: name, "aria-label": name, "aria-pressed": String(on), onclick: () => this.choose(source),
    }, image);
  }

  draw() {
    const focused = [...this.strip.children].indexOf(document.activeElement);
    const photos = this.app.pictures.map(({ name, url }) => {
      const image = picture(null, "");
      pictureAddress(url).then((address) => { image.src = address; }, () => image.classList.add("missing"));
      return this.thumb({ kind: "photo", name }, image, name);
    });
    const kept = this.kept().map((source, i) => this.thumb(source, picture(source.picture, ""), source.label ?? `kept ${i + 1}`));
    const own = this.own ? [this.thumb(this.own, picture(this.own.url, ""), this.own.file.name)] : [];
    this.strip.replaceChildren(...own, ...kept, ...photos);
    this.strip.hidden = !this.strip.children.length;
    this.note.hidden = this.value?.kind !== "file";
    this.strip.children[focused]?.focus();
  }
}

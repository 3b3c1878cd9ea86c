// Pictures and code maps of one grid: a position chosen in one of them is marked in all.
import { factorPaint } from "./colours.js";
import { h } from "./dom.js";

const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** Positions with the same code of a factor as (row, column), nearest first, itself left out. */
export function sharing(map, [row, column]) {
  const code = map[row][column];
  const found = [];
  map.forEach((line, y) => line.forEach((other, x) => {
    if (other === code && (y !== row || x !== column)) found.push([y, x]);
  }));
  const distance = ([y, x]) => (y - row) ** 2 + (x - column) ** 2;
  return found.sort((a, b) => distance(a) - distance(b));
}

export class Views {
  /** `onposition(position or null, factor)` is called when another position is looked at, `onpin` when one is kept. */
  constructor({ onposition, onpin }) {
    Object.assign(this, { onposition, onpin, list: [], codes: null, pinned: null, factor: 0 });
    this.element = h("div.views", {});
  }

  clear() {
    this.list = [];
    this.codes = null;
    this.element.replaceChildren();
  }

  /** Adds a picture (any element) under a caption; `factor`: whose codes it shows, null for a picture of all. */
  add(caption, content, factor, name) {
    const marks = h("canvas.marks", { "aria-hidden": "true" });
    const frame = h("div.frame", {
      tabIndex: 0, role: "application", "aria-label": `${name}. Arrow keys move between positions, Escape leaves.`,
      onpointermove: (event) => { if (event.pointerType === "mouse") this.look(this.at(frame, event), factor); },
      onpointerleave: (event) => { if (event.pointerType === "mouse") this.look(this.pinned, null); },
      onclick: (event) => this.pin(this.at(frame, event), factor, true),
      onkeydown: (event) => this.key(event, factor),
    }, content, marks);
    this.list.push({ frame, marks });
    this.element.append(h("figure", {}, h("figcaption", {}, caption), frame));
  }

  /** [k][h][w] codes and the pictures' [height, width]. */
  setCodes(codes, [height, width]) {
    this.codes = codes;
    this.rows = codes[0].length;
    this.columns = codes[0][0].length;
    for (const { frame, marks } of this.list) {
      frame.style.aspectRatio = `${width} / ${height}`;
      this.cell = Math.max(8, Math.round(560 / Math.max(this.rows, this.columns)));
      marks.width = this.columns * this.cell;
      marks.height = this.rows * this.cell;
    }
    if (this.pinned && (this.pinned[0] >= this.rows || this.pinned[1] >= this.columns)) this.pinned = null;
    this.look(this.pinned, null);
  }

  at(frame, event) {
    const box = frame.getBoundingClientRect();
    const part = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    return [part((event.clientY - box.top) / box.height, this.rows), part((event.clientX - box.left) / box.width, this.columns)];
  }

  key(event, factor) {
    if (event.key === "Escape") this.pin(null, factor);
    const step = KEYS[event.key];
    if (!step || !this.codes) return;
    event.preventDefault();
    const [row, column] = this.pinned ?? [Math.floor(this.rows / 2), Math.floor(this.columns / 2)];
    const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
    const moved = this.pinned ? [clamp(row + step[0], this.rows), clamp(column + step[1], this.columns)] : [row, column];
    this.pin(moved, factor);
  }

  pin(position, factor, toggle = false) {
    if (!this.codes) return;
    const same = toggle && this.pinned && position && this.pinned.join() === position.join();
    this.pinned = same ? null : position;
    this.look(this.pinned, factor);
    this.onpin(this.pinned, this.factor);
  }

  /** Marks a position and those that share its code of `factor` (null: the factor looked at last). */
  look(position, factor) {
    if (!this.codes) return;
    this.factor = Math.min(factor ?? this.factor, this.codes.length - 1);
    const key = `${position}/${this.factor}`;
    if (key === this.shown && position) return;
    this.shown = key;
    for (const view of this.list) this.mark(view.marks, position);
    this.onposition(position, this.factor);
  }

  mark(canvas, position) {
    const paint = canvas.getContext("2d");
    paint.clearRect(0, 0, canvas.width, canvas.height);
    if (!position) return;
    const cell = this.cell;
    const others = sharing(this.codes[this.factor], position);
    paint.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--veil");
    paint.globalAlpha = others.length ? 0.6 : 0.3; // one place is found without hiding the rest
    paint.fillRect(0, 0, canvas.width, canvas.height);
    paint.globalAlpha = 1;
    const line = Math.max(1.5, Math.min(canvas.width / 180, cell / 9));
    for (const [y, x] of [...others, position]) paint.clearRect(x * cell, y * cell, cell, cell);
    const frame = ([y, x], colour, width) => {
      paint.strokeStyle = colour;
      paint.lineWidth = width;
      paint.strokeRect(x * cell + width / 2, y * cell + width / 2, cell - width, cell - width);
    };
    for (const other of others) frame(other, factorPaint(this.factor), line);
    frame(position, "#fff", line * 2.4);
    frame(position, factorPaint(this.factor), line * 1.5);
  }
}

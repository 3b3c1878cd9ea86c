// Paints a region on the grid of codes, by pointer, touch or keyboard.
import { button, h, picture, segments } from "./dom.js";

const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class Painter {
  constructor({ onchange }) {
    Object.assign(this, { onchange, grid: [0, 0], region: [], cursor: [0, 0], down: false, shownCursor: false });
    this.tool = segments("Tool", [["paint", "Paint"], ["erase", "Erase"]], "paint", () => {});
    this.image = picture(null, "The picture to edit");
    this.marks = h("canvas.marks", { "aria-hidden": "true" });
    this.frame = h("div.frame.paper", {
      tabIndex: 0, role: "application",
      "aria-label": "Region. Arrow keys move, Space paints or erases, with Shift the arrow keys paint on the way.",
      onpointerdown: (event) => this.press(event),
      onpointermove: (event) => this.down && this.drag(event),
      onpointerup: () => this.release(),
      onpointercancel: () => this.release(),
      onkeydown: (event) => this.key(event),
      onfocus: () => this.draw(),
      onblur: () => { this.shownCursor = false; this.draw(); },
    }, this.image, this.marks);
    this.count = h("span.muted", { "aria-live": "polite" });
    const all = (value) => () => { this.region.fill(value); this.changed(); };
    const invert = () => { this.region = this.region.map((on) => !on); this.changed(); };
    this.element = h("div.painter", { hidden: true }, this.frame, h("div.tools", {}, this.tool.element,
      button("All", all(true)), button("None", all(false)), button("Invert", invert), this.count));
  }

  clear() {
    this.region.fill(false);
    this.element.classList.add("busy");
  }

  show(source, grid, cell) {
    this.element.hidden = false;
    this.element.classList.remove("busy");
    this.image.src = source;
    this.grid = grid;
    const ratio = (grid[1] * cell[1]) / (grid[0] * cell[0]);
    this.frame.style.aspectRatio = String(ratio);
    this.frame.style.setProperty("--ratio", ratio);
    this.cursor = [Math.floor(grid[0] / 2), Math.floor(grid[1] / 2)];
    this.size = Math.max(8, Math.round(840 / Math.max(...grid)));
    this.marks.width = grid[1] * this.size;
    this.marks.height = grid[0] * this.size;
  }

  set(region) {
    this.region = region;
    this.draw();
  }

  any() {
    return this.region.some(Boolean);
  }

  at(event) {
    const box = this.frame.getBoundingClientRect();
    const part = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
    return [part((event.clientY - box.top) / box.height, this.grid[0]), part((event.clientX - box.left) / box.width, this.grid[1])];
  }

  press(event) {
    if (event.button || !this.region.length) return;
    event.preventDefault();
    this.frame.focus({ preventScroll: true });
    this.frame.setPointerCapture(event.pointerId);
    this.shownCursor = false;
    this.down = true;
    this.last = this.at(event);
    this.put(this.last);
  }

  drag(event) {
    const [row, column] = this.at(event);
    const [y, x] = this.last;
    // a fast pointer skips positions: fill the line between
    const steps = Math.max(Math.abs(row - y), Math.abs(column - x));
    for (let i = 1; i <= steps; i++) this.put([Math.round(y + ((row - y) * i) / steps), Math.round(x + ((column - x) * i) / steps)], false);
    this.last = [row, column];
    this.draw();
  }

  release() {
    if (!this.down) return;
    this.down = false;
    this.changed();
  }

  put([row, column], draw = true) {
    this.region[row * this.grid[1] + column] = this.tool.value === "paint";
    if (draw) this.draw();
  }

  key(event) {
    const step = KEYS[event.key];
    if (step) {
      const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
      this.cursor = [clamp(this.cursor[0] + step[0], this.grid[0]), clamp(this.cursor[1] + step[1], this.grid[1])];
      if (event.shiftKey) this.put(this.cursor);
    } else if (event.key === " ") {
      const here = this.cursor[0] * this.grid[1] + this.cursor[1];
      this.region[here] = !this.region[here];
    } else return;
    event.preventDefault();
    this.shownCursor = true;
    this.changed();
  }

  changed() {
    this.draw();
    this.onchange();
  }

  draw() {
    const context = this.marks.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const { width, height } = this.marks;
    const size = this.size;
    const [, columns] = this.grid;
    context.clearRect(0, 0, width, height);
    context.strokeStyle = "rgb(255 255 255 / 22%)";
    context.lineWidth = 1;
    context.beginPath();
    for (let x = size; x < width; x += size) { context.moveTo(x, 0); context.lineTo(x, height); }
    for (let y = size; y < height; y += size) { context.moveTo(0, y); context.lineTo(width, y); }
    context.stroke();
    const on = (row, column) => row >= 0 && column >= 0 && column < columns && this.region[row * columns + column];
    context.lineWidth = 4;
    this.region.forEach((painted, i) => {
      if (!painted) return;
      const [row, column] = [Math.floor(i / columns), i % columns];
      const [x, y] = [column * size, row * size];
      context.fillStyle = style.getPropertyValue("--paint");
      context.fillRect(x, y, size, size);
      context.strokeStyle = style.getPropertyValue("--paint-edge");
      context.beginPath();
      if (!on(row - 1, column)) { context.moveTo(x, y + 2); context.lineTo(x + size, y + 2); }
      if (!on(row + 1, column)) { context.moveTo(x, y + size - 2); context.lineTo(x + size, y + size - 2); }
      if (!on(row, column - 1)) { context.moveTo(x + 2, y); context.lineTo(x + 2, y + size); }
      if (!on(row, column + 1)) { context.moveTo(x + size - 2, y); context.lineTo(x + size - 2, y + size); }
      context.stroke();
    });
    if (this.shownCursor) {
      const [row, column] = this.cursor;
      for (const [colour, line] of [["#000", 8], ["#fff", 4]]) {
        context.strokeStyle = colour;
        context.lineWidth = line;
        context.strokeRect(column * size + 4, row * size + 4, size - 8, size - 8);
      }
    }
    const painted = this.region.filter(Boolean).length;
    this.count.textContent = painted ? `${painted} of ${this.region.length} positions` : "nothing painted yet";
  }
}

// Builds elements. Text always enters the page as text nodes, never as HTML.

/** An element: h("button.quiet", {type: "button", onclick: f}, "Text", child). */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (key in element && !key.startsWith("aria") && key !== "role" && key !== "list") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let count = 0;
export const newId = (prefix) => `${prefix}-${++count}`;

/** A labelled control. `hint` is read out with it. */
export function field(label, control, hint) {
  control.id ||= newId("field");
  const note = hint && h("small", { id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div.field", {}, h("label", { htmlFor: control.id }, label), control, note);
}

export function button(text, onclick, kind = "quiet", properties = {}) {
  return h(`button.${kind}`, { type: "button", onclick, ...properties }, text);
}

/** A choice from a list of [value, text]. */
export function select(options, value, onchange) {
  const element = h("select", { onchange: () => onchange(element.value) });
  element.append(...options.map(([key, text]) => h("option", { value: key }, text)));
  element.value = value;
  return element;
}

/** A slider with its number beside it; `format` turns the value into text. */
export function slider(label, { min, max, step, value, format = String, oninput, colour }) {
  const output = h("output", {}, format(value));
  const input = h("input", { type: "range", min, max, step, id: newId("slider") });
  input.value = value;
  const show = () => {
    output.textContent = format(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
    input.style.setProperty("--share", (input.value - input.min) / (input.max - input.min || 1));
  };
  input.addEventListener("input", () => {
    show();
    oninput?.(Number(input.value));
  });
  show();
  const caption = h("label", { htmlFor: input.id }, colour && dot(colour), label);
  const element = h("div.field.slider", {}, h("div.line", {}, caption, output), input);
  return {
    element,
    input,
    get value() { return Number(input.value); },
    set value(number) { input.value = number; show(); },
    range(low, high) { input.min = low; input.max = high; show(); },
  };
}

/** Radio buttons that look like one switch: [value, text] each. */
export function segments(label, options, value, onchange) {
  const name = newId("segments");
  const inputs = options.map(([key, text]) => {
    const input = h("input", { type: "radio", name, value: key, checked: key === value, onchange: () => onchange(key) });
    return h("label", {}, input, h("span", {}, text));
  });
  const element = h("div.segments", { role: "radiogroup", "aria-label": label }, inputs);
  return {
    element,
    get value() { return element.querySelector("input:checked")?.value; },
    set value(key) { for (const input of element.querySelectorAll("input")) input.checked = input.value === key; },
  };
}

export const dot = (colour) => h("i.dot", { style: { "--dot": colour }, "aria-hidden": "true" });

/** PSNR as text; servers send null for a picture that came back without any error. */
export const decibels = (psnr, digits = 2) => (psnr === null ? "no error" : `${psnr.toFixed(digits)} dB`);

/** Says a sentence to screen readers. */
export function say(text) {
  document.getElementById("live").textContent = text;
}

/** A place for one calm sentence about what went wrong, with a button that tries again. */
export function noticePlace() {
  const element = h("div.notices", { role: "alert" });
  return {
    element,
    clear() { element.replaceChildren(); },
    show(error, again) {
      if (error.name === "AbortError") return;
      if (!error.sentence) console.error(error);
      const text = error.sentence ?? "Something on this page went wrong. Reload it, please.";
      const retry = again && !error.final && button("Try again", () => { element.replaceChildren(); again(); });
      element.replaceChildren(h("p.notice", {}, h("span", {}, text), error.extra?.() ?? null, retry || null));
    },
  };
}

/** Marks pictures whose pixels should stay squares when they are enlarged. */
export function picture(source, alt) {
  const image = h("img", { alt, decoding: "async", ondragstart: (event) => event.preventDefault() });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 160));
  if (source) image.src = source;
  return image;
}

/** The newest call wins: runs `work(signal)`, and cancels the call before it. */
export function latest() {
  let controller = null;
  return async (work) => {
    controller?.abort();
    const mine = (controller = new AbortController());
    try {
      return await work(mine.signal);
    } finally {
      if (controller === mine) controller = null;
    }
  };
}

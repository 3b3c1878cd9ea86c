// The state of the page as an address: #tab?key=value. Codes and regions are packed into short texts.

export function readAddress() {
  const [tab, query = ""] = location.hash.slice(1).split("?");
  return { tab, params: new URLSearchParams(query) };
}

/** The part of an address that stands for a tab's state. */
export function addressOf(tab, state) {
  const params = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    if (value !== undefined && value !== null && value !== "") params.set(key, String(value));
  }
  const query = params.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  return `#${tab}${query ? `?${query}` : ""}`;
}

/** Writes the address; `push` makes a new entry in the browser's history. */
export function writeAddress(tab, state, push = false) {
  const hash = addressOf(tab, state);
  if (hash !== location.hash) history[push ? "pushState" : "replaceState"](null, "", hash);
}

const toText = (bytes) =>
  btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

const toBytes = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));

/** [k][h][w] integers -> "2x8x8.text": seven bits a byte, the highest bit says that more follow. */
export function packCodes(codes) {
  const bytes = [];
  for (let code of codes.flat(2)) {
    for (; code > 127; code = Math.floor(code / 128)) bytes.push((code % 128) | 128);
    bytes.push(code);
  }
  return `${codes.length}x${codes[0].length}x${codes[0][0].length}.${toText(bytes)}`;
}

/** The inverse of packCodes; null for a text that is damaged. */
export function unpackCodes(text) {
  try {
    const [shape, packed] = text.split(".");
    const [k, height, width] = shape.split("x").map(Number);
    const flat = [];
    let code = 0;
    let scale = 1;
    for (const byte of toBytes(packed)) {
      code += (byte & 127) * scale;
      scale *= 128;
      if (byte < 128) {
        flat.push(code);
        code = 0;
        scale = 1;
      }
    }
    if (!flat.length || flat.length !== k * height * width) return null;
    const rows = (f) => Array.from({ length: height }, (_, y) => flat.slice((f * height + y) * width).slice(0, width));
    return Array.from({ length: k }, (_, f) => rows(f));
  } catch {
    return null;
  }
}

/** A list of booleans -> text, six a letter. */
export function packRegion(region) {
  const bytes = new Uint8Array(Math.ceil(region.length / 8));
  region.forEach((on, i) => { if (on) bytes[i >> 3] |= 1 << (i & 7); });
  return region.some(Boolean) ? toText(bytes) : "";
}

export function unpackRegion(text, length) {
  try {
    const bytes = toBytes(text ?? "");
    return Array.from({ length }, (_, i) => Boolean((bytes[i >> 3] ?? 0) & (1 << (i & 7))));
  } catch {
    return Array(length).fill(false);
  }
}

/** Numbers "1,2" of an address as a list, or the fallback. */
export function numbers(text, fallback) {
  const list = (text ?? "").split(",").map(Number);
  return text && list.every(Number.isFinite) ? list : fallback;
}

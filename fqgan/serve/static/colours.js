// Colours of factors and codes.

const FACTORS = ["var(--factor-0)", "var(--factor-1)", "var(--factor-2)", "var(--factor-3)"];

export const factorColour = (factor) => FACTORS[factor % FACTORS.length];

/** The same for canvases, which know no variables. */
export function factorPaint(factor) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--factor-${factor % FACTORS.length}`).trim();
}

/** A code's colour: the same code has the same colour everywhere, and neighbours in the codebook differ. */
export function codeColour(code) {
  let mixed = Math.imul(code + 1, 0x9e3779b1);
  mixed = Math.imul(mixed ^ (mixed >>> 15), 0x85ebca6b);
  mixed = (mixed ^ (mixed >>> 13)) >>> 0;
  const hue = mixed % 360;
  const lightness = 42 + ((mixed >>> 9) % 5) * 8;
  const saturation = 38 + ((mixed >>> 18) % 4) * 8;
  return `hsl(${hue} ${saturation}% ${lightness}%)`;
}

/** Draws a factor's codes, a square a position. */
export function codeMap(codes) {
  const canvas = document.createElement("canvas");
  canvas.height = codes.length;
  canvas.width = codes[0].length;
  const context = canvas.getContext("2d");
  codes.forEach((row, y) => row.forEach((code, x) => {
    context.fillStyle = codeColour(code);
    context.fillRect(x, y, 1, 1);
  }));
  canvas.className = "pixels";
  return canvas;
}

// The little Markdown that model cards use -> elements. Foreign text stays text: nothing of it is read as HTML.
import { h } from "./dom.js";

const INLINE = /(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^\]]+\]\([^)\s]+\))/;

function inline(text) {
  return text.split(INLINE).map((part, i) => {
    if (i % 2 === 0) return part;
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    if (part.startsWith("**")) return h("strong", {}, part.slice(2, -2));
    if (part.startsWith("*")) return h("em", {}, part.slice(1, -1));
    const [, label, target] = part.match(/^\[([^\]]+)\]\(([^)\s]+)\)$/);
    return /^https?:\/\//.test(target) ? h("a", { href: target, rel: "noopener noreferrer", target: "_blank" }, label) : label;
  });
}

const cells = (line) => line.replace(/^\s*\|/, "").replace(/\|\s*$/, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const ruled = lines.length > 1 && /^[\s|:-]+$/.test(lines[1]);
  const head = ruled ? h("thead", {}, h("tr", {}, cells(lines[0]).map((cell) => h("th", { scope: "col" }, inline(cell))))) : null;
  const rows = lines.slice(ruled ? 2 : 0).map((line) => h("tr", {}, cells(line).map((cell) => h("td", {}, inline(cell)))));
  return h("div.scroll", {}, h("table.scores", {}, head, h("tbody", {}, rows)));
}

/** A text -> elements: headings, paragraphs, lists, code, tables. */
export function markdown(text) {
  const lines = text.replaceAll("\r", "").split("\n");
  const found = [];
  let i = 0;
  const take = (test) => {
    const start = i;
    while (i < lines.length && test(lines[i])) i++;
    return lines.slice(start, i);
  };
  const isItem = (line) => /^\s*([-*]|\d+\.)\s+/.test(line);
  const isTable = (line) => /^\s*\|/.test(line);
  const isPlain = (line) => line.trim() && !/^(#{1,6}\s|```)/.test(line) && !isItem(line) && !isTable(line);
  while (i < lines.length) {
    const line = lines[i];
    const heading = line.match(/^(#{1,6})\s+(.*)$/);
    if (!line.trim()) i++;
    else if (line.startsWith("```")) {
      i++;
      found.push(h("pre", { tabIndex: 0 }, h("code", {}, take((each) => !each.startsWith("```")).join("\n"))));
      i++;
    } else if (heading) {
      i++;
      found.push(h(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])));
    } else if (isItem(line)) {
      // lines that go on below an item are indented
      const items = [];
      for (const each of take((other) => isItem(other) || /^\s{2,}\S/.test(other))) {
        if (isItem(each)) items.push(each.replace(/^\s*([-*]|\d+\.)\s+/, ""));
        else items[items.length - 1] += ` ${each.trim()}`;
      }
      found.push(h(/^\s*\d/.test(line) ? "ol" : "ul", {}, items.map((item) => h("li", {}, inline(item)))));
    } else if (isTable(line)) found.push(table(take(isTable)));
    else {
      const plain = take(isPlain);
      if (plain.length) found.push(h("p", {}, inline(plain.join(" "))));
      else i++;
    }
  }
  return found;
}

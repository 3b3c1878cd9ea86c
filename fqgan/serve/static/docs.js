// The interface: what openapi.json says, as a page.
import { getDescription, takeToken } from "./api.js";
import { h, noticePlace } from "./dom.js";

/** A field's type in words. */
function typeOf(schema) {
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.anyOf) return schema.anyOf.filter((each) => each.type !== "null").map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {}) || "values"}`;
  return schema.type ?? "";
}

function fields(schema) {
  const needed = schema.required ?? [];
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => h("tr", {},
    h("th", { scope: "row" }, h("code", {}, name)),
    h("td", {}, [typeOf(field), needed.includes(name) ? "required" : "", field.description ?? ""].filter(Boolean).join(". "))));
  return rows.length ? h("table.sheet", {}, h("caption.unseen", {}, "Fields"), h("tbody", {}, rows)) : null;
}

function route(path, method, about) {
  const content = about.requestBody?.content ?? {};
  const schema = Object.values(content)[0]?.schema ?? {};
  return h("article.model", {},
    h("header", {}, h("h2", {}, h("code", {}, `${method.toUpperCase()} ${path}`)),
      Object.keys(content).map((kind) => h("span.kind", {}, kind))),
    h("p", {}, about.description ?? ""), fields(schema));
}

async function boot() {
  const main = document.getElementById("main");
  const notice = noticePlace();
  main.replaceChildren(notice.element);
  try {
    const { info, paths } = await getDescription();
    main.append(h("p.lead", {}, `${info.title} ${info.version}. ${info.description}`),
      ...Object.entries(paths).flatMap(([path, methods]) =>
        Object.entries(methods).map(([method, about]) => route(path, method, about))));
  } catch (error) {
    notice.show(error, boot);
  }
}

takeToken();
boot();

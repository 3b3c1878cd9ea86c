// Starts the page: asks for the models, makes the tabs, and keeps the address in step.
import { getModels, takeToken } from "./api.js";
import { addressOf, readAddress, writeAddress } from "./address.js";
import { h, noticePlace, say } from "./dom.js";
import { Tray } from "./tray.js";
import * as reconstruct from "./reconstruct.js";
import * as generate from "./generate.js";
import * as edit from "./edit.js";
import * as mix from "./mix.js";
import * as compare from "./compare.js";
import * as about from "./about.js";

const TABS = { reconstruct, generate, edit, mix, compare, about };
const title = (name) => name[0].toUpperCase() + name.slice(1);

class App {
  constructor(answer) {
    this.models = answer.models ?? [];
    this.pictures = answer.pictures ?? [];
    this.version = answer.version;
    this.tokenizers = this.models.filter((each) => each.kind === "tokenizer");
    this.generators = this.models.filter((each) => each.kind === "generator");
    // a generator carries its tokenizer, which may not be served under a name of its own
    this.codecs = [...this.tokenizers, ...this.generators.filter((each) => !this.model(each.tokenizer))];
    this.tray = new Tray(this);
    this.tabs = {};
    this.current = null;
  }

  model(name) {
    return this.models.find((each) => each.name === name);
  }

  /** The model that encodes and decodes for a generator: its tokenizer where that is served, else itself. */
  codec(model) {
    return this.model(model.tokenizer)?.name ?? model.name;
  }

  /** Height and width of a position in pixels. */
  cell(model) {
    const both = model.downsampling || 8;
    return Array.isArray(both) ? both : [both, both];
  }

  /** Height and width of a generator's pictures, in pixels. */
  size(model) {
    const cell = this.cell(model);
    return [model.grid[0] * cell[0], model.grid[1] * cell[1]];
  }

  /** A tab that lacks a model says so. */
  needs(what, command) {
    const element = h("div.empty", {}, h("p", {}, `This tab needs ${what}, and this server has none.`),
      h("p.hint", {}, "Start the server with one, for example ", h("code", {}, command), "."));
    return { element, state: () => ({}), apply() {} };
  }

  start() {
    const bar = document.getElementById("tabs");
    for (const name of Object.keys(TABS)) {
      bar.append(h("button.tab", {
        type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => this.go(name),
      }, title(name)));
      document.getElementById("main").append(
        h("div.panel", { id: `panel-${name}`, role: "tabpanel", "aria-labelledby": `tab-${name}`, hidden: true }));
    }
    bar.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("popstate", () => this.follow());
    this.follow();
  }

  key(event) {
    const names = Object.keys(TABS);
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -names.indexOf(this.current), End: -1 - names.indexOf(this.current) };
    if (!(event.key in step)) return;
    event.preventDefault();
    const next = names[(names.indexOf(this.current) + step[event.key] + names.length) % names.length];
    this.go(next);
    document.getElementById(`tab-${next}`).focus();
  }

  /** Opens a tab, with another state if `state` is given. */
  go(name, state) {
    const tab = this.tabs[name];
    writeAddress(name, state ?? tab?.state() ?? {}, true);
    if (state || !tab) this.follow();
    else this.show(name);
  }

  /** Takes the state from the address. */
  follow() {
    const { tab, params } = readAddress();
    const name = tab in TABS ? tab : !this.tokenizers.length && this.generators.length ? "generate" : "reconstruct";
    const made = this.tabs[name];
    this.show(name);
    // back to a tab that still is as the address says: nothing is asked for again
    if (made && addressOf(name, made.state()) === location.hash) return;
    this.tabs[name].apply(params);
    this.changed();
  }

  show(name) {
    this.current = name;
    if (!this.tabs[name]) {
      this.tabs[name] = TABS[name].create(this);
      document.getElementById(`panel-${name}`).append(this.tabs[name].element);
    }
    for (const other of Object.keys(TABS)) {
      const on = other === name;
      document.getElementById(`panel-${other}`).hidden = !on;
      const tab = document.getElementById(`tab-${other}`);
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      if (on) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    document.title = `${title(name)} · fqgan`;
    this.tabs[name].shown?.();
  }

  /** Writes the state of the open tab into the address. */
  changed() {
    const tab = this.tabs[this.current];
    if (tab) writeAddress(this.current, tab.state());
  }
}

async function copyAddress() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("Link copied.");
    flash("Copied");
  } catch {
    flash("Copy it from the address bar");
  }
}

function flash(text) {
  const share = document.getElementById("share");
  share.textContent = text;
  setTimeout(() => { share.textContent = "Copy link"; }, 1600);
}

async function boot() {
  const loading = document.getElementById("loading");
  const notice = noticePlace();
  document.getElementById("notice").append(notice.element);
  loading.hidden = false;
  try {
    const app = new App(await getModels());
    loading.hidden = true;
    app.start();
  } catch (error) {
    loading.hidden = true;
    notice.show(error, boot);
  }
}

takeToken();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the state
  document.getElementById("main").focus();
});
document.getElementById("share").addEventListener("click", copyAddress);
boot();

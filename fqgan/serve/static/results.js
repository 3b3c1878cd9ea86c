// Pictures while they are drawn, and what can be done with them afterwards.
import { stream } from "./api.js";
import { className } from "./sampling.js";
import { button, h, noticePlace, picture, say } from "./dom.js";

export class Results {
  /** `idle`: the line above the pictures before the first of them. `vary(card, factor or null)`: another seed is
      wanted, or a factor drawn again. */
  constructor(app, { idle, vary }) {
    Object.assign(this, { app, vary, running: null });
    this.notice = noticePlace();
    this.status = h("p.status", {}, idle);
    this.stopper = button("Stop", () => this.stop(), "quiet", { hidden: true });
    this.line = h("div.running", {}, this.status, this.stopper);
    this.grid = h("div.gallery", {});
    this.element = h("div.results", {}, this.notice.element, this.line, this.grid);
    app.tray.watch(() => this.grid.querySelectorAll(".card").forEach((card) => card.refresh?.()));
  }

  stop() {
    this.running?.abort();
  }

  /** Draws pictures: `path` and `body` are the request, `about` {model, size: [h, w]} what cards say of them.
      New cards replace the old ones, or stand behind the card `after`. True when all were drawn. */
  async run({ path, body, about, after }) {
    this.stop();
    const controller = (this.running = new AbortController());
    this.notice.clear();
    const made = Array.from({ length: body.num }, () => this.blank(about, body));
    if (after) after.after(...made.map((card) => card.element));
    else this.grid.replaceChildren(...made.map((card) => card.element));
    if (after) made[0]?.element.scrollIntoView({ block: "nearest", behavior: "smooth" });
    this.stopper.hidden = false;
    const progress = made.map(() => 0);
    let spoken = 0;
    const show = () => {
      const share = progress.reduce((sum, each) => sum + each, 0) / progress.length;
      this.status.textContent = `Drawing ${made.length === 1 ? "a picture" : `${made.length} pictures`}, ${Math.round(share * 100)} %`;
      if (share >= spoken + 0.25) say(`${Math.round((spoken = share) * 100)} % drawn.`);
    };
    show();
    let seconds = null;
    try {
      await stream(path, body, {
        progress: (event) => {
          const card = made[event.image];
          if (!card) return;
          progress[event.image] = event.position / event.of;
          card.grow(event.picture, progress[event.image]);
          show();
        },
        image: (event) => {
          if (!made[event.image]) return;
          progress[event.image] = 1;
          made[event.image].finish(event, { ...body, path });
          show();
        },
        done: (event) => { seconds = event.seconds; },
      }, controller.signal);
      const time = seconds === null || seconds === undefined ? "" : ` in ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
      this.status.textContent = `${made.length === 1 ? "1 picture" : `${made.length} pictures`} drawn${time}`;
      say(`${this.status.textContent}.`);
      return true;
    } catch (error) {
      for (const card of made) if (!card.done) card.element.remove();
      this.status.textContent = error.name === "AbortError" ? "Stopped" : "";
      say(this.status.textContent);
      this.notice.show(error, () => this.run({ path, body, about, after }));
      return false;
    } finally {
      if (this.running === controller) {
        this.running = null;
        this.stopper.hidden = true;
      }
    }
  }

  blank({ model, size, note }, body) {
    const image = picture(null, "");
    const bar = h("i.bar", { style: { "--share": 0 } });
    const caption = h("figcaption", {}, h("span.muted", {}, "…"));
    const frame = h("div.frame.waiting", { style: { "aspect-ratio": `${size[1]} / ${size[0]}` } }, image, bar);
    const element = h("figure.card", { "aria-busy": "true" }, frame, caption);
    const card = {
      element,
      done: false,
      grow(source, share) {
        image.src = source;
        frame.classList.remove("waiting");
        bar.style.setProperty("--share", share);
      },
      finish: (event, request) => {
        card.done = true;
        card.grow(event.picture, 1);
        bar.remove();
        element.removeAttribute("aria-busy");
        // as it was asked for: names of classes may occur twice
        const number = body.classes?.[event.image % body.classes.length] ?? null;
        const item = this.item(model, event, request, number);
        image.alt = item.label;
        caption.replaceChildren(h("span", {}, className(model, number) || note || model.name), h("small", {}, `seed ${event.seed}${event.index ? ` · ${event.index}` : ""}`));
        const actions = this.actions(model, item, element);
        element.append(actions.element);
        element.refresh = actions.refresh;
      },
    };
    return card;
  }

  item(model, event, request, number) {
    const label = `${className(model, number) || model.name}, seed ${event.seed}${event.index ? ` · ${event.index}` : ""}`;
    return {
      codes: event.codes, picture: event.picture, label, model: model.name, codec: this.app.codec(model),
      class: number, seed: event.seed, index: event.index ?? 0, request,
    };
  }

  actions(model, item, element) {
    const keep = button("Keep", () => {
      this.app.tray.keep(item);
      say("Kept for Edit and Mix.");
    });
    const refresh = () => {
      const kept = this.app.tray.has(item);
      keep.textContent = kept ? "Kept" : "Keep";
      keep.disabled = kept;
    };
    refresh();
    const again = (factor) => this.vary({ item, element }, factor);
    const vary = this.vary && h("details.menu", {}, h("summary", {}, "Vary"), h("div.items", {},
      button("Next seed", () => again(null)),
      ...(model.factors.length > 1 ? model.factors.map((name, i) => button(`Redraw ${name}`, () => again(i))) : [])));
    vary?.addEventListener("click", (event) => { if (event.target.closest("button")) vary.open = false; });
    vary?.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      vary.open = false;
      vary.firstChild.focus();
    });
    vary?.addEventListener("focusout", (event) => { if (!vary.contains(event.relatedTarget)) vary.open = false; });
    return {
      element: h("div.actions", {}, keep, vary ?? null,
        button("↓", () => this.download(item), "quiet", {
          "aria-label": "Download", title: "Download the picture, and a JSON file with its settings and codes",
        })),
      refresh,
    };
  }

  download(item) {
    const name = item.label.replaceAll(/[^\p{L}\p{N}]+/gu, "-").replaceAll(/^-|-$/g, "");
    const { picture: image, request, ...facts } = item;
    const { stream: _, ...settings } = request;
    const text = JSON.stringify({ version: this.app.version, ...facts, settings }, null, 1);
    save(image, `${name}.png`);
    save(URL.createObjectURL(new Blob([text], { type: "application/json" })), `${name}.json`);
  }
}

function save(address, name) {
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

// What the pages need beside htmx: the state of the live connection, times that age, dialogs, copying, the theme.
// Everything is delegated to the document, so that a refreshed page needs no wiring again.
"use strict";

(() => {
  const root = document.documentElement;
  const SILENCE_MS = 30_000; // the server ticks every 10 s

  // -- the live connection ---------------------------------------------------------------------------------------
  let heard = Date.now();
  let connection = null;
  let everLive = false;

  const show = (state) => {
    root.dataset.live = state;
    const banner = document.getElementById("lost");
    if (banner) banner.hidden = state !== "lost";
  };
  const alive = () => {
    heard = Date.now();
    if (root.dataset.live !== "live") show("live");
  };

  document.addEventListener("htmx:sse:after:connection", (event) => {
    connection = event.detail.connection;
    alive();
    // What happened while nobody listened is caught up with at once.
    if (everLive) document.body.dispatchEvent(new CustomEvent("live"));
    everLive = true;
  });
  document.addEventListener("htmx:sse:before:connection", (event) => {
    connection = event.detail.connection;
    if (connection.attempt > 0 && !document.hidden) show("lost");
  });
  document.addEventListener("htmx:sse:error", () => show("lost"));
  document.addEventListener("tick", alive);
  document.addEventListener("live", alive);
  setInterval(() => {
    if (root.dataset.live === "off" || document.hidden || Date.now() - heard < SILENCE_MS) return;
    show("lost");
    heard = Date.now();
    // A connection that died without a word: let go of it, and the extension opens the next one.
    if (connection?.reader) connection.reader.cancel();
  }, 5_000);

  // A page that could not connect at all when it was opened has no stream to reconnect: try until it has.
  setInterval(() => {
    const element = document.getElementById("live");
    if (element && !document.hidden && !element._htmx?.sse) {
      if (root.dataset.live === "connecting") show("lost");
      htmx.ajax("GET", element.getAttribute("hx-sse:connect"), { source: element, timeout: 10_000 });
    }
  }, 5_000);

  // -- times -----------------------------------------------------------------------------------------------------
  const UNITS = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]];
  const ago = (at, now) => {
    const delta = (now - at) / 1000;
    const span = Math.abs(delta);
    if (span < 3) return "just now";
    const [length, unit] = UNITS.find(([seconds]) => span >= seconds) ?? [1, "s"];
    const text = `${Math.floor(span / length)} ${unit}`;
    return delta > 0 ? `${text} ago` : `in ${text}`;
  };
  const age = () => {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[datetime]")) {
      const at = Date.parse(time.dateTime);
      const text = ago(at, now);
      if (time.textContent !== text) time.textContent = text;
      const local = new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
      if (time.title !== local) time.title = local;
    }
  };
  setInterval(age, 1_000);
  document.addEventListener("DOMContentLoaded", age);
  document.addEventListener("htmx:after:settle", age);

  // -- theme -----------------------------------------------------------------------------------------------------
  const THEMES = ["system", "light", "dark"];
  const setTheme = (name) => {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    try {
      if (name === "system") localStorage.removeItem("skerry-theme");
      else localStorage.setItem("skerry-theme", name);
    } catch {
      // Storage may be forbidden; the choice then lasts for this page.
    }
    const button = document.getElementById("theme");
    if (button) button.title = `Theme: ${name}`;
    document.dispatchEvent(new CustomEvent("theme"));
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("theme")));

  // -- clicks ----------------------------------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const target = event.target.closest?.("[data-dialog], [data-close], [data-copy], [data-dismiss], #theme");
    if (!target) return;
    if (target.id === "theme") {
      const now = root.dataset.theme ?? "system";
      setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
    } else if (target.dataset.dialog) {
      document.getElementById(target.dataset.dialog)?.showModal();
    } else if (target.dataset.close) {
      document.getElementById(target.dataset.close)?.close();
    } else if (target.dataset.copy) {
      navigator.clipboard?.writeText(target.dataset.copy).then(() => {
        target.classList.add("done");
        setTimeout(() => target.classList.remove("done"), 1_500);
      });
    } else if ("dismiss" in target.dataset) {
      target.closest(".flash")?.remove();
    }
  });

  // A live refresh must not close a dialog that someone is reading.
  document.addEventListener("htmx:before:request", (event) => {
    const source = event.detail.ctx.sourceElement;
    if (source?.id === "main" && document.querySelector("dialog[open]")) event.preventDefault();
    if (source?.dataset?.closes) document.getElementById(source.dataset.closes)?.close();
    if (source?.tagName === "FORM" && source.method === "post") document.getElementById("flash")?.replaceChildren();
  });
  document.addEventListener("htmx:error", (event) => {
    if (event.detail.ctx?.sourceElement?.id === "main") show("lost");
  });
})();

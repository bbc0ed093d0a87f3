// What the pages need beside htmx: the state of the live connection, times that age, dialogs, copying, the theme.
// Everything is delegated to the document, so that a refreshed page needs no wiring again.
"use strict";

(() => {
  const root = document.documentElement;
  const SILENCE_MS = 30_000; // the server ticks every 10 s
  const BUSY = 503; // the hub keeps as many live connections open as it may

  // -- the live connection ---------------------------------------------------------------------------------------
  let heard = Date.now();
  let connection = null;
  let everLive = false;
  let missed = false; // a refresh failed: what it would have shown is asked for again with the next tick

  const show = (state) => {
    root.dataset.live = state;
    const banner = document.getElementById("lost");
    if (banner) banner.hidden = state !== "lost";
  };
  const alive = () => {
    heard = Date.now();
    if (root.dataset.live !== "live") show("live");
  };

  const refresh = () => document.body.dispatchEvent(new CustomEvent("live"));

  // Without a seat the page polls, and asks for a seat again now and then.
  let poll = 0;
  let askAgain = 0;
  const startPolling = () => {
    const period = Number(document.getElementById("live").dataset.pollMs);
    show("polling");
    askAgain = Date.now() + 3 * period;
    poll ||= setInterval(() => {
      if (!document.hidden) refresh();
    }, period);
  };
  const stopPolling = () => {
    clearInterval(poll);
    poll = 0;
  };

  document.addEventListener("htmx:sse:after:connection", (event) => {
    connection = event.detail.connection;
    stopPolling();
    alive();
    // What happened while nobody listened is caught up with at once.
    if (everLive) refresh();
    everLive = true;
  });
  document.addEventListener("htmx:sse:before:connection", (event) => {
    connection = event.detail.connection;
    if (connection.attempt > 0 && !document.hidden && !poll) show("lost");
  });
  document.addEventListener("htmx:sse:error", (event) => (event.detail.status === BUSY ? startPolling() : show("lost")));
  document.addEventListener("htmx:response:error", (event) => {
    const { sourceElement, response } = event.detail.ctx;
    if (sourceElement?.id === "live" && response.status === BUSY) startPolling();
    if (sourceElement?.id === "main") missed = true;
  });
  document.addEventListener("htmx:after:request", (event) => {
    const { sourceElement, response } = event.detail.ctx;
    if (poll && sourceElement?.id === "main" && response.status < 400) show("polling");
  });
  document.addEventListener("tick", () => {
    alive();
    if (!missed) return;
    missed = false;
    refresh();
  });
  // htmx drops what comes within the throttle of #main after a refresh: the last of it is made up for at its end.
  const THROTTLE_MS = 2_000;
  let refreshed = 0;
  let trailing = 0;
  document.addEventListener("live", () => {
    alive();
    const rest = refreshed + THROTTLE_MS - Date.now();
    if (rest <= 0) {
      refreshed = Date.now();
      return;
    }
    trailing ||= setTimeout(() => {
      trailing = 0;
      refresh();
    }, rest + 100);
  });
  setInterval(() => {
    if (root.dataset.live === "off" || poll || document.hidden || Date.now() - heard < SILENCE_MS) return;
    show("lost");
    heard = Date.now();
    // A connection that died without a word: let go of it, and the extension opens the next one.
    if (connection?.reader) connection.reader.cancel();
  }, 5_000);

  // A page that could not connect at all when it was opened has no stream to reconnect: try until it has.
  setInterval(() => {
    const element = document.getElementById("live");
    if (element && !document.hidden && !element._htmx?.sse && !(poll && Date.now() < askAgain)) {
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

  // A form that came back: on a phone what was wrong with it may be far above the button. A marked field has the focus.
  document.addEventListener("htmx:after:swap", (event) => {
    if (event.detail.ctx.request?.method !== "POST" || document.querySelector("[aria-invalid=true]")) return;
    document.getElementById("problem")?.scrollIntoView({ block: "center" });
  });

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

  // A live refresh must not close a dialog that someone is reading; what it held back follows when that is closed.
  // The page of what is being deleted is not asked for again.
  let heldBack = false;
  let leaving = false;
  document.addEventListener("close", () => {
    if (heldBack) refresh();
    heldBack = false;
  }, true);
  document.addEventListener("htmx:before:request", (event) => {
    const source = event.detail.ctx.sourceElement;
    if (source?.id === "main" && (leaving || document.querySelector("dialog[open]"))) {
      heldBack = true;
      event.preventDefault();
    }
    if (source?.dataset && "leaves" in source.dataset) leaving = true;
    if (source?.dataset?.closes) document.getElementById(source.dataset.closes)?.close();
    if (source?.tagName === "FORM" && source.method === "post") document.getElementById("flash")?.replaceChildren();
  });
  for (const failure of ["htmx:response:error", "htmx:error"]) {
    document.addEventListener(failure, () => (leaving = false));
  }
  document.addEventListener("htmx:error", (event) => {
    if (event.detail.ctx?.sourceElement?.id !== "main") return;
    show("lost");
    missed = true;
  });
})();

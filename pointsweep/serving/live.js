// Follows the server: the part of the page that changes comes as HTML that the server has escaped, the report as a new frame
// behind the one that is shown, which takes its place with what the reader had opened, chosen and scrolled to.
"use strict";
(() => {
  const body = document.body, at = (id) => document.getElementById(id);
  const SILENCE_MS = 12000;  // the server says every few seconds that it is there
  const BUSY_MS = 4000;  // after a touch, a key or a turn of the wheel the reader is left alone
  let source = null, heard = Date.now(), lost = false, retry = null, content = "";

  // The connection

  function connect() {
    if (source) source.close();
    clearTimeout(retry);
    heard = Date.now();
    source = new EventSource(body.dataset.events);
    source.addEventListener("state", (event) => { answered(); show(JSON.parse(event.data)); });
    source.addEventListener("alive", answered);
    source.addEventListener("error", () => {
      old();
      if (source.readyState === EventSource.CLOSED) retry = setTimeout(connect, 2000);
    });
  }

  function answered() {
    heard = Date.now();
    lost = false;
    body.classList.remove("old");
    at("notice").hidden = true;
  }

  function old() {
    if (lost) return;
    lost = true;
    const since = new Date(heard).toLocaleTimeString();
    body.classList.add("old");
    at("notice").textContent = `The server does not answer. This is an old state, of ${since}; the page goes on when the server is there again.`;
    at("notice").hidden = false;
    refused();
  }

  // An EventSource does not say that it was refused.
  async function refused() {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      if (lost && answer.status === 401) at("notice").textContent = "The server asks for a token. This is an old state: open the address that the server printed.";
    } catch { /* it is away */ }
  }

  setInterval(() => {
    if (source && !document.hidden && Date.now() - heard > SILENCE_MS) { old(); connect(); }
    advance();
  }, 500);

  // A browser has few connections to a server: a page that nobody sees leaves them to others.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source.close(); clearTimeout(retry); source = null; } else connect();
  });

  function show(state) {
    if (state.title) document.title = state.title;
    if (content !== state.html) at("content").innerHTML = content = state.html;
    if (state.version) wanted = state.version;
    advance();
  }

  // The report

  const frames = at("frames");
  let wanted = "", loading = false, next = 0, touched = 0, paused = false;
  let current = body.dataset.version || "";

  function advance() {
    if (!frames || !wanted || wanted === current || loading || paused) return;
    if (Date.now() < next || Date.now() - touched < BUSY_MS || lost) return;
    load(wanted);
  }

  function load(version) {
    const before = frames.querySelector("iframe"), frame = document.createElement("iframe"), begun = Date.now();
    const theme = before && before.contentDocument && before.contentDocument.documentElement.dataset.theme;
    loading = true;
    frame.title = before ? before.title : "Report";
    frame.className = "next";
    frame.src = `${body.dataset.report}?v=${encodeURIComponent(version)}${theme ? `&theme=${theme}` : ""}`;
    const failed = setTimeout(() => { frame.remove(); loading = false; }, 60000);
    frame.addEventListener("load", () => {
      clearTimeout(failed);
      loading = false;
      if (!frame.contentDocument || !frame.contentDocument.body || lost) { frame.remove(); return; }
      if (before) restore(before, frame);
      attend(frame);
      frame.className = "";
      if (before) before.remove();
      const waiting = at("waiting");
      if (waiting) waiting.remove();
      current = version;
      next = Date.now() + Math.max(1000, 5 * (Date.now() - begun));
    }, { once: true });
    frames.append(frame);
  }

  // What tells one element from its like in another report of the same sweep: its id, else its number.
  const parts = (frame, kind) => [...frame.contentDocument.querySelectorAll(kind)];
  const same = (element, number, others) => (element.id ? others.find((other) => other.id === element.id) : others[number]);

  // The order that the reader gave to a table: the button in its heading is pressed until it says the same.
  function sort(before, after) {
    const heads = parts(after, "th");
    parts(before, "th").forEach((head, number) => {
      const order = head.getAttribute("aria-sort"), button = heads[number] && heads[number].querySelector("button");
      for (let press = 0; order && button && press < 2 && heads[number].getAttribute("aria-sort") !== order; press += 1) button.click();
    });
  }

  function restore(before, after) {
    sort(before, after);
    for (const kind of ["select", "input"]) {
      const others = parts(after, kind);
      parts(before, kind).forEach((element, number) => {
        const other = same(element, number, others);
        if (!other || (other.value === element.value && other.checked === element.checked)) return;
        other.value = element.value;
        if (kind === "input") other.checked = element.checked;
        for (const type of ["input", "change"]) other.dispatchEvent(new Event(type, { bubbles: true }));
      });
    }
    const details = parts(after, "details");
    parts(before, "details").forEach((element, number) => {
      const other = same(element, number, details);
      if (other) other.open = element.open;
    });
    const boxes = parts(after, ".scroll");
    parts(before, ".scroll").forEach((element, number) => { if (boxes[number]) boxes[number].scrollLeft = element.scrollLeft; });
    after.contentWindow.scrollTo({ left: before.contentWindow.scrollX, top: before.contentWindow.scrollY, behavior: "instant" });
    const focusable = "a, button, summary, select, input, [tabindex]", active = before.contentDocument.activeElement;
    if (document.activeElement === before && active) {
      const other = same(active, parts(before, focusable).indexOf(active), parts(after, focusable));
      after.focus();
      if (other) other.focus({ preventScroll: true });
    }
  }

  // A reader at work is not disturbed; links out of the report open beside it; both follow one choice of light and dark.
  function attend(frame) {
    const inside = frame.contentDocument, root = inside.documentElement;
    for (const type of ["pointerdown", "pointermove", "keydown", "wheel", "input"]) {
      inside.addEventListener(type, (event) => { if (type !== "pointermove" || event.buttons) touched = Date.now(); }, { capture: true, passive: true });
    }
    for (const link of inside.querySelectorAll("a[href]")) {
      if (!link.getAttribute("href").startsWith("#")) { link.target = "_blank"; link.rel = "noopener"; }
    }
    const follow = () => { if (root.dataset.theme) document.documentElement.dataset.theme = root.dataset.theme; };
    new MutationObserver(follow).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
    follow();
  }

  if (frames) {
    const first = frames.querySelector("iframe");
    if (first) {
      if (first.contentDocument && first.contentDocument.readyState === "complete" && first.contentDocument.URL !== "about:blank") attend(first);
      else first.addEventListener("load", () => attend(first), { once: true });
    }
    at("pause").hidden = false;
    at("pause").addEventListener("click", () => {
      paused = !paused;
      at("pause").setAttribute("aria-pressed", String(paused));
      advance();
    });
  }
  connect();
})();

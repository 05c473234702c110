// Draws the page's charts with Plotly, sorts and filters the table, and shows what a reader chooses: two arms compared, one arm's
// confusions. Text enters the page as text only, never as HTML, and a figure with the signs that Plotly would read as tags escaped.
"use strict";
(() => {
  const root = document.documentElement, at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };

  // The table: sorted by a heading, filtered by a word, saved and copied

  function save(name, text, type) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function sorted(button) {
    const head = button.closest("th"), body = at("table").tBodies[0], label = button.dataset.label;
    const way = head.getAttribute("aria-sort") === "descending" ? 1 : head.getAttribute("aria-sort") === "ascending" || label === undefined ? -1 : 1;
    for (const other of at("table").querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
    const value = label === undefined
      ? (row) => { const text = row.querySelectorAll("td.first")[button.dataset.column].dataset.value; return text === "" ? null : Number(text); }
      : (row) => row.cells[label].textContent;
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    // Cells without a value stay at the end either way.
    const keyed = [...body.rows].map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => (a === null ? 1 : 0) - (b === null ? 1 : 0) || (a === null ? 0 : way * order(a, b)));
    body.append(...keyed.map(([, row]) => row));
  }

  function filtered() {
    const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean), rows = [...at("table").tBodies[0].rows];
    let count = 0;
    for (const row of rows) {
      const text = [...row.querySelectorAll("th")].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) count += 1;
    }
    at("shown").textContent = words.length ? `${count} of ${rows.length} rows` : "";
  }

  // The rows as they stand, with tabs between the cells: what a spreadsheet takes from the clipboard.
  function tabbed() {
    const words = (cell) => (cell.querySelector("summary") || cell).textContent.trim().replace(/\s+/g, " ");
    const [top, second] = at("table").tHead.rows, width = second.cells.length / (top.querySelectorAll("th.first").length || 1);
    const labels = [...top.querySelectorAll("th.label")].map((cell) => (cell.querySelector("[aria-label]") ? "" : words(cell)));
    const columns = [...top.querySelectorAll("th.first")].map(words);
    const heads = [...labels, ...[...second.cells].map((cell, i) => `${columns[Math.floor(i / width)]}: ${words(cell)}`)];
    const rows = [...at("table").tBodies[0].rows].filter((row) => !row.hidden);
    return [heads, ...rows.map((row) => [...row.cells].map(words))].map((cells) => cells.join("\t")).join("\n");
  }

  async function copied() {
    const text = tabbed();
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a page that is no secure context
      const area = make("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    at("shown").textContent = "copied";
  }

  // In large tables what a cell opens is written when it opens: each cell has its place in the order of the page.
  function opened({ interval, runs, commands }) {
    const line = (...parts) => make("div", "run", ...parts);
    return make("div", "", ...(interval ? [line(interval)] : []), ...runs.map((run) => {
      const element = line(make("b", "", `seed ${run.seed}`), " ", ...run.lines.flatMap((text) => [text, make("br")]), make("code", "", run.key));
      if (run.bad) element.classList.add("bad");
      if (run.link) { const link = make("a", "", "MLflow"); Object.assign(link, { href: run.link, rel: "noreferrer" }); element.append(" ", link); }
      return element;
    }), ...commands.map((text) => line(make("code", "", text))));
  }

  const places = new Map([...at("table").querySelectorAll("details")].map((element, i) => [element, i]));
  if (at("runs")) {
    let kept = null;  // some megabytes: read when the first cell opens
    at("table").addEventListener("toggle", ({ target }) => {
      if (!target.open || target.children.length > 1) return;
      kept ||= JSON.parse(at("runs").textContent);
      const [interval, runs, commands] = kept.cells[places.get(target)];
      target.append(opened({ interval, commands, runs: runs.map(([seed, key, lines, bad, link]) => ({
        seed, key, bad, lines: lines.map((number) => kept.lines[number]), link: link === undefined ? "" : kept.lines[link].replaceAll("{key}", key),
      })) }));
    }, true);
  }

  at("tools").hidden = false;
  for (const button of document.querySelectorAll("#table .sort")) button.addEventListener("click", () => sorted(button));
  at("filter").addEventListener("input", filtered);
  at("copy").addEventListener("click", copied);
  for (const button of document.querySelectorAll(".save")) {
    button.addEventListener("click", () => {
      const found = [...document.querySelectorAll("script.export")].find((each) => each.dataset.file === button.dataset.file);
      save(button.dataset.file, JSON.parse(found.textContent).text, button.dataset.file.endsWith(".csv") ? "text/csv" : "application/x-tex");
    });
  }
  if (!data.themes) return;

  // Theme: the system's, until the button (or ?theme=dark) says otherwise.

  const dark = matchMedia("(prefers-color-scheme: dark)"), paper = () => root.classList.contains("paper");
  const shown = () => (paper() ? "light" : root.dataset.theme || (dark.matches ? "dark" : "light"));
  const asked = new URLSearchParams(location.search).get("theme");
  if (asked === "dark" || asked === "light") root.dataset.theme = asked;
  at("theme").hidden = false;
  at("theme").addEventListener("click", () => { root.dataset.theme = shown() === "dark" ? "light" : "dark"; repaint(); });
  dark.addEventListener("change", repaint);

  // Charts. A figure is drawn when it comes near the window, and again when the theme or the width of the page changes its look.

  const NARROW = 560, drawn = new Map();  // element -> its figure as it was given
  const PHOTO = { width: 1200, scale: 2 };
  const icon = (text) => ({ width: 30, height: 16, path: "", svg:
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 16"><text x="15" y="13" font-size="14" font-weight="700" font-family="sans-serif" text-anchor="middle">${text}</text></svg>` });

  const faint = (color, share) => {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${share})`;
  };

  const escaped = (text) => text.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);
  const plain = (text) => text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  // Long names at an axis would leave no room for the chart; the hover has them whole.
  const shortened = (text, most) => { const signs = [...plain(text)]; return signs.length > most ? `${escaped(signs.slice(0, most - 1).join(""))}…` : text; };

  // A figure in the colours of the theme; on a phone without the words that stand beside marks.
  function painted(figure, narrow) {
    const theme = data.themes[shown()], made = structuredClone(figure);
    for (const [index, trace] of made.data.entries()) {
      const meta = trace.meta || {};
      if (meta.wide && narrow) trace.visible = false;
      if (meta.role) trace.marker = { ...trace.marker, color: getComputedStyle(root).getPropertyValue(meta.role).trim() };
      if (meta.heat !== undefined) {
        const color = theme.colors[meta.heat];
        trace.colorscale = [[0, faint(color, 0.08)], [1, faint(color, 0.6)]];
        trace.textfont = { color: theme.ink };
      }
      if (meta.slot === undefined) continue;
      const color = theme.colors[meta.slot % theme.colors.length];
      if (meta.band) trace.fillcolor = faint(color, 0.15);
      else if (trace.type === "bar") trace.marker = { ...trace.marker, color };
      else {
        if (trace.mode?.includes("lines")) trace.line = { ...trace.line, color };
        trace.marker = { ...trace.marker, color };
        if (trace.error_y) trace.error_y = { ...trace.error_y, color: faint(color, 0.6) };
      }
      made.data[index] = trace;
    }
    made.layout.template = theme.template;
    made.layout.uirevision = "kept";  // what was zoomed into stays so
    made.layout.modebar = { bgcolor: "rgba(0,0,0,0)" };
    for (const [name, axis] of Object.entries(made.layout)) {
      if (/^[xy]axis/.test(name) && axis.ticktext) axis.ticktext = axis.ticktext.map((text) => shortened(text, narrow ? 16 : 40));
    }
    if (narrow) {
      made.layout.margin = { ...made.layout.margin, l: Math.min(40, made.layout.margin?.l ?? 40), r: 8 };
      made.layout.font = { ...made.layout.font, size: 11 };
      if (made.layout.hovermode === "x unified") made.layout.hoverlabel = { font: { size: 10 } };
    }
    return made;
  }

  // Where a reader looks from: the layout does not follow the mouse.
  const camera = (element) => structuredClone(element._fullLayout.scene._scene.getCamera());

  function exported(element, format) {
    const figure = drawn.get(element), title = element.getAttribute("data-title") || "chart", made = painted(figure, false);
    // What was zoomed into is what is saved.
    for (const name of Object.keys(element.layout)) {
      if (/^([xy]axis\d*|scene)$/.test(name)) made.layout[name] = { ...made.layout[name], ...structuredClone(element.layout[name]) };
    }
    if (made.layout.scene) made.layout.scene.camera = camera(element);
    made.layout.paper_bgcolor = data.themes[shown()].card;
    made.layout.title = { text: escaped(title), x: 0.02, font: { size: 16 } };
    made.layout.margin = { ...made.layout.margin, t: 60 };
    const filename = `${data.name} ${title}`.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 80);
    return Plotly.downloadImage(made, { format, filename, height: element.clientHeight + 20, ...PHOTO });
  }

  const config = {
    responsive: true, displaylogo: false, displayModeBar: true, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d"],
    modeBarButtonsToAdd: ["svg", "png"].map((format) => ({
      name: `save as ${format.toUpperCase()}`, title: `Save as ${format.toUpperCase()}`, icon: icon(format.toUpperCase()),
      click: (element) => exported(element, format),
    })),
  };

  function draw(element, figure, title) {
    drawn.set(element, figure);
    if (title) element.setAttribute("data-title", title);
    const made = painted(figure, element.clientWidth < NARROW);
    return Plotly.react(element, made.data, made.layout, config);
  }

  function repaint() {
    for (const [element, figure] of drawn) {
      if (!element.isConnected) drawn.delete(element);
      else if (element.offsetParent !== null) draw(element, figure);
    }
  }

  function ready(element) {
    if (drawn.has(element)) return;
    const one = element.closest(".one");
    draw(element, JSON.parse(one.querySelector("script.figure").textContent), one.querySelector("figcaption").textContent);
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); ready(entry.target); }
  }, { rootMargin: "400px" });
  for (const element of document.querySelectorAll(".one .plot")) near.observe(element);

  let width = innerWidth;
  addEventListener("resize", () => {
    if ((width < NARROW) !== (innerWidth < NARROW)) repaint();
    width = innerWidth;
  });
  // On paper everything is drawn, and as wide as the sheet: no chart and no table is cut. Three charts stand on a sheet.
  const LOW = 280, heights = new Map();
  addEventListener("beforeprint", () => {
    root.classList.add("paper");
    for (const element of document.querySelectorAll(".plot")) {
      const height = parseFloat(element.style.height);
      heights.set(element, element.style.height);
      if (height < 2 * LOW) element.style.height = `${Math.min(height, LOW)}px`;
    }
    for (const element of document.querySelectorAll(".one:not([hidden]) .plot")) ready(element);
    repaint();
    for (const table of document.querySelectorAll(".scroll > table")) {
      if (table.scrollWidth > table.parentElement.clientWidth) table.style.zoom = table.parentElement.clientWidth / table.scrollWidth;
    }
  });
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    for (const [element, height] of heights) element.style.height = height;
    heights.clear();
    for (const table of document.querySelectorAll(".scroll > table")) table.style.zoom = "";
    repaint();
  });

  // Of several charts the one whose labels are chosen; a label that has none with the others is replaced by the first that has.
  for (const chart of document.querySelectorAll("figure.chart")) {
    const selects = [...chart.querySelectorAll("select.choice")], ones = [...chart.querySelectorAll(".one")];
    for (const select of selects) {
      select.addEventListener("change", () => {
        const fits = (one, chosen) => chosen.every((each) => JSON.parse(one.dataset.labels)[each.dataset.at] === each.value);
        const found = ones.find((one) => fits(one, selects)) || ones.find((one) => fits(one, [select]));
        const labels = JSON.parse(found.dataset.labels);
        for (const each of selects) each.value = labels[each.dataset.at];
        for (const one of ones) one.hidden = one !== found;
        ready(found.querySelector(".plot"));
      });
    }
  }

  // Keys on a chart: arrows move it, + and - zoom, 0 shows all again; the buttons above it are reached by Tab.
  document.addEventListener("keydown", (event) => {
    const element = event.target;
    if (!element.classList?.contains("plot") || !drawn.has(element) || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: ["x", -0.1], ArrowRight: ["x", 0.1], ArrowDown: ["y", -0.1], ArrowUp: ["y", 0.1] }[event.key];
    const zoom = { "+": 0.8, "=": 0.8, "-": 1.25 }[event.key];
    if (!step && !zoom && event.key !== "0") return;
    event.preventDefault();
    if (element.layout.scene) { turned(element, step, zoom); return; }
    const change = {};
    for (const name of Object.keys(element.layout).filter((each) => /^[xy]axis\d*$/.test(each))) {
      const axis = element.layout[name];
      if (event.key === "0") change[`${name}.autorange`] = figureRange(element, name) ? undefined : true;
      if (event.key === "0" && figureRange(element, name)) change[`${name}.range`] = figureRange(element, name);
      if (!axis.range || axis.range.some((end) => typeof end !== "number")) continue;
      const [low, high] = axis.range, middle = (low + high) / 2, half = (high - low) / 2;
      if (step && name[0] === step[0]) change[`${name}.range`] = [low + step[1] * (high - low), high + step[1] * (high - low)];
      if (zoom) change[`${name}.range`] = [middle - zoom * half, middle + zoom * half];
    }
    Plotly.relayout(element, change);
  });
  const figureRange = (element, name) => drawn.get(element).layout[name]?.range;

  function turned(element, step, zoom) {
    let { x, y, z } = camera(element).eye;
    if (zoom) [x, y, z] = [x * zoom, y * zoom, z * zoom];
    else if (step?.[0] === "x") { const a = 2 * step[1]; [x, y] = [x * Math.cos(a) - y * Math.sin(a), x * Math.sin(a) + y * Math.cos(a)]; }
    else if (step) z += 3 * step[1];
    else ({ x, y, z } = drawn.get(element).layout.scene.camera.eye);
    Plotly.relayout(element, { "scene.camera.eye": { x, y, z } });
  }

  // What is drawn from the predictions of the trials

  const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const classes = (text) => data.class_bytes === 1 ? bytes(text) : new Int32Array(bytes(text).buffer);
  for (const truth of data.truths) {
    truth.labels = classes(truth.labels);
    if (truth.clouds) {
      truth.clouds.bytes = new Int8Array(bytes(truth.clouds.bytes).buffer);
      truth.clouds.places = new Map(truth.clouds.objects.map((object, place) => [object, place]));
    }
  }
  for (const arm of data.arms) arm.predictions = arm.predictions.map(classes);
  const className = (truth, number) => truth.classes[number] ?? `class ${number}`;

  // A chart with its title, drawn once it is on the page.
  function plot(title, height, figure) {
    const element = make("div", "plot");
    Object.assign(element, { tabIndex: 0 });
    element.style.height = `${height}px`;
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", title);
    queueMicrotask(() => { if (element.isConnected) draw(element, figure, title); });
    return make("div", "drawn", make("p", "caption", title), element);
  }

  // An opened cell shows the table's metric by epoch, a line each seed.
  function cellCurves(seeds) {
    const lines = seeds.map(({ seed, last, step, values }, i) => ({
      type: "scatter", mode: "lines", name: `seed ${seed}`, line: { width: 1.5, dash: ["solid", "dash", "dot", "dashdot"][Math.floor(i / 8) % 4] },
      x: values.map((_, j) => last - step * (values.length - 1 - j)), y: values.map((value) => value / 100), hovertemplate: "%{y:.1f}", meta: { slot: i },
    }));
    const layout = {
      margin: { l: 40, r: 8, t: 30, b: 34 }, showlegend: false, hovermode: "x unified", hoverlabel: { font: { size: 11 } }, font: { size: 11 },
      xaxis: { title: { text: "epoch" }, showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot" }, yaxis: { automargin: true, title: { text: "%" } },
    };
    return plot(`${data.metric} by epoch, each seed`, 210, { data: lines, layout });
  }
  if (at("cell-curves")) {
    let cells = null;
    at("table").addEventListener("toggle", ({ target }) => {
      if (!target.open || target.querySelector(".plot")) return;
      cells ||= JSON.parse(at("cell-curves").textContent);
      const seeds = cells[places.get(target)];
      if (seeds.length) target.lastElementChild.prepend(cellCurves(seeds));
    }, true);
  }

  // Two arms

  function settings(first, second) {
    const rows = data.settings.map((name, i) => [name, first.config[i], second.config[i]]).filter(([, a, b]) => a !== b);
    if (!rows.length) return make("p", "small", "The same settings.");
    const table = make("table"), head = make("tr", "", make("th"), make("th", "", first.name), make("th", "", second.name));
    table.append(make("thead", "", head), make("tbody", "", ...rows.map(([name, a, b]) => make("tr", "", make("td", "", make("code", "", name)),
      ...[a, b].map((value) => make("td", value === null ? "soft" : "", value === null ? "—" : value))))));
    return make("div", "scroll", table);
  }

  // By object: in how many of the shared seeds only the first (gain) or only the second (loss) is right.
  function flips(first, second) {
    const truth = data.truths[first.truth], seeds = first.seeds.filter((seed) => second.seeds.includes(seed));
    const gain = new Uint16Array(truth.labels.length), loss = new Uint16Array(truth.labels.length);
    const bySeed = seeds.map((seed) => {
      const own = [0, 0], a = first.predictions[first.seeds.indexOf(seed)], b = second.predictions[second.seeds.indexOf(seed)];
      truth.labels.forEach((label, object) => {
        if (a[object] === label && b[object] !== label) { gain[object] += 1; own[0] += 1; }
        if (a[object] !== label && b[object] === label) { loss[object] += 1; own[1] += 1; }
      });
      return own;
    });
    return { truth, seeds, gain, loss, bySeed };
  }

  // Exact McNemar, mid-p, and Holm over the seeds, as in paired.py and stats.py; null where so few differ that no outcome reaches 5 %.
  function mcnemar(gained, lost) {
    const n = gained + lost, less = Math.min(gained, lost);
    if (0.5 ** n >= 0.05) return null;
    let logarithm = -n * Math.LN2, below = 0;  // of the chance of k of n, from k = 0 upwards
    for (let k = 0; k < less; k += 1) { below += Math.exp(logarithm); logarithm += Math.log((n - k) / (k + 1)); }
    const own = Math.exp(logarithm);
    return gained === lost ? 1 - own / 2 : 2 * below + own;
  }

  function holm(values) {
    const adjusted = values.map(() => null);
    let largest = 0;
    [...values.keys()].filter((i) => values[i] !== null).sort((a, b) => values[a] - values[b]).forEach((at, rank) => {
      largest = Math.max(largest, Math.min(1, (values.length - rank) * values[at]));
      adjusted[at] = largest;
    });
    return adjusted;
  }

  function tests({ seeds, bySeed }) {
    const values = bySeed.map(([gained, lost]) => mcnemar(gained, lost)), adjusted = holm(values);
    const word = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);
    return make("ul", "notes tests", ...seeds.map((seed, i) => {
      const [gained, lost] = bySeed[i], head = `seed ${seed}: ${gained} gained, ${lost} lost; `;
      const line = make("li", "", values[i] === null ? `${head}so few carry no p-value` : `${head}${word(values[i])}, by Holm over the seeds ${word(adjusted[i])}`);
      Object.assign(line.dataset, { p: values[i], adjusted: adjusted[i] });
      return line;
    }));
  }

  // Lost to the left, gained to the right, the greatest gain on top.
  function byClass({ truth, gain, loss }) {
    const found = truth.classes.map((name) => ({ name, gain: 0, loss: 0 }));
    truth.labels.forEach((label, object) => { found[label].gain += gain[object]; found[label].loss += loss[object]; });
    const rows = found.filter((row) => row.gain || row.loss).sort((a, b) => (b.gain - b.loss) - (a.gain - a.loss));
    const names = rows.map((row) => escaped(row.name)), places = [...rows.keys()];
    const bar = (name, role, sign) => ({
      type: "bar", orientation: "h", name, y: places, text: names, textposition: "none", x: rows.map((row) => sign * row[name]), customdata: rows.map((row) => row[name]),
      meta: { role }, hovertemplate: `%{text}: %{customdata} ${name === "gain" ? "gained" : "lost"}<extra></extra>`,
    });
    const most = Math.max(1, ...rows.map((row) => Math.max(row.gain, row.loss))), step = Math.max(1, Math.ceil(most / 3));
    const ticks = [-3, -2, -1, 0, 1, 2, 3].map((i) => i * step).filter((value) => Math.abs(value) <= most);
    const layout = {
      barmode: "relative", bargap: 0.25, showlegend: false, margin: { l: 80, r: 16, t: 36, b: 40 }, hovermode: "closest",
      yaxis: { range: [rows.length - 0.5, -0.5], tickvals: places, ticktext: names, automargin: true, showgrid: false }, xaxis: { tickvals: ticks, ticktext: ticks.map((value) => String(Math.abs(value))), title: { text: "objects lost, and gained" } },
    };
    const chart = plot("Gained and lost by class", 110 + 22 * rows.length, { data: [bar("loss", "--bad", -1), bar("gain", "--good", 1)], layout });
    const words = make("ul", "", ...rows.map((row) => {
      const line = make("li", "flip", `${row.name}: ${row.gain} gained, ${row.loss} lost`);
      Object.assign(line.dataset, { name: row.name, gain: row.gain, loss: row.loss });
      return line;
    }));
    return make("div", "", chart, make("details", "text", make("summary", "", "As text"), words));
  }

  // The objects that flip in most seeds, at most `most` of each kind; of equals those with a cloud to draw.
  function objects(first, second, found, counts, most) {
    const { truth, seeds } = found, cloud = (object) => Number(!!truth.clouds && truth.clouds.places.has(object));
    const chosen = [...counts.keys()].filter((object) => counts[object])
      .sort((a, b) => counts[b] - counts[a] || cloud(b) - cloud(a) || a - b).slice(0, most);
    const said = (arm, object) => [...new Set(seeds.map((seed) => className(truth, arm.predictions[arm.seeds.indexOf(seed)][object])))].join(", ");
    return chosen.map((object) => ({
      object, cloud: cloud(object), name: className(truth, truth.labels[object]), count: counts[object], first: said(first, object), second: said(second, object),
    }));
  }

  // Every object that flipped as a button; the cloud of the chosen one in 3D. Points are int8, the second axis upwards.
  function gallery(truth, seeds, groups) {
    const holder = make("div", "cloud"), lists = make("div", "");
    const show = (item, button) => {
      for (const other of lists.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      if (!item.cloud) { holder.replaceChildren(make("p", "small", "No cloud of this object is in the page.")); return; }
      const stored = truth.clouds, place = stored.places.get(item.object);
      const points = stored.bytes.subarray(3 * stored.points * place, 3 * stored.points * (place + 1)), axis = (i) => Array.from({ length: stored.points }, (_, k) => points[3 * k + i]);
      const up = axis(1), plain = { visible: false, range: [-135, 135] };
      const figure = {
        data: [{ type: "scatter3d", mode: "markers", x: axis(0), y: axis(2).map((value) => -value), z: up, meta: { slot: 0 }, marker: { size: 2.6 }, hoverinfo: "none", name: escaped(item.name) }],
        layout: { margin: { l: 0, r: 0, t: 30, b: 0 }, showlegend: false, scene: { xaxis: plain, yaxis: plain, zaxis: plain, aspectmode: "cube", dragmode: "turntable", camera: { eye: { x: 0.9, y: -1.1, z: 0.6 } } } },
      };
      const title = `${item.name}, point cloud ${item.object}`, element = holder.querySelector(".plot");
      if (element) {
        element.setAttribute("aria-label", title);
        holder.querySelector(".caption").textContent = title;
        draw(element, figure, title);
      }
      else holder.replaceChildren(plot(title, 420, figure));
    };
    for (const [word, items] of groups) {
      if (!items.length) continue;
      const buttons = items.map((item) => {
        const button = make("button", "object", make("b", "", item.name), make("span", "", ` object ${item.object}, ${item.count}/${seeds.length} seeds`),
          make("br"), make("span", "", "first: "), item.first, make("br"), make("span", "", "second: "), item.second);
        button.type = "button";
        button.addEventListener("click", () => show(item, button));
        return make("li", "", button);
      });
      lists.append(make("h3", "", word), make("ul", "", ...buttons));
    }
    const items = groups.flatMap(([, each]) => each), at = items.findIndex((item) => item.cloud);
    if (at >= 0) queueMicrotask(() => show(items[at], lists.querySelectorAll("button")[at]));
    return make("div", at >= 0 ? "gallery" : "", lists, ...(at >= 0 ? [holder] : []));
  }

  function compare() {
    const first = data.arms[at("first").value], second = data.arms[at("second").value];
    at("settings").replaceChildren(settings(first, second));
    if (!at("flips")) return;
    if (first.truth === null || first.truth !== second.truth) {
      at("flips").replaceChildren(make("p", "small", "Not the same test objects, or true classes were not kept: no gains and losses between these two."));
      return;
    }
    const found = flips(first, second), sum = (counts) => counts.reduce((total, value) => total + value, 0);
    const number = (name, value) => { const mark = make("b", name, String(value)); mark.dataset.count = name; return mark; };
    const tally = make("p", "tally", "Over ", String(found.seeds.length), ` seeds and ${found.truth.labels.length} test objects, `, make("b", "", first.name), " is right where ",
      make("b", "", second.name), " is wrong ", number("gain", sum(found.gain)), " times, and wrong where it is right ", number("loss", sum(found.loss)), " times.");
    const parts = [make("h3", "", "Gained and lost"), tally, make("h3", "", "Model against model, seed by seed (exact McNemar, mid-p)"), tests(found)];
    if (sum(found.gain) || sum(found.loss)) {
      parts.push(byClass(found));
      const groups = [["Objects gained", found.gain], ["Objects lost", found.loss]];
      parts.push(gallery(found.truth, found.seeds, groups.map(([word, counts]) => [word, objects(first, second, found, counts, 6)])));
    }
    at("flips").replaceChildren(...parts);
  }

  // Confusions

  function counts(arm, truth) {
    const size = truth.classes.length, table = Array.from({ length: size }, () => new Uint32Array(size));
    for (const predicted of arm.predictions) truth.labels.forEach((label, object) => { table[label][predicted[object]] += 1; });
    return table;
  }

  // What is right in blue, what is wrong in red, by its share of the row.
  function matrix(name, truth, table) {
    const size = table.length, totals = table.map((row) => row.reduce((sum, value) => sum + value, 0)), places = [...table.keys()];
    const names = places.map((i) => escaped(className(truth, i)));
    const layer = (name, slot, right) => ({
      type: "heatmap", name, x: places, y: places, showscale: false, xgap: 1, ygap: 1, zmin: 0, zmax: 1, hoverongaps: false, meta: { heat: slot },
      z: table.map((row, i) => [...row].map((value, j) => (value && (i === j) === right ? value / totals[i] : null))),
      customdata: table.map((row, i) => [...row].map((value, j) => `${names[i]} taken for ${names[j]}: ${value} of ${totals[i]}`)),
      text: table.map((row) => [...row].map((value) => value || "")), texttemplate: size <= 15 ? "%{text}" : undefined, hovertemplate: "%{customdata}<extra></extra>",
    });
    const axis = { tickvals: places, ticktext: names.map((name) => shortened(name, 18)), showgrid: false, zeroline: false, automargin: true, tickfont: { size: size > 20 ? 10 : 12 } };
    const layout = {
      margin: { l: 70, r: 10, t: 40, b: 70 }, hovermode: "closest", xaxis: { ...axis, range: [-0.5, size - 0.5], tickangle: -60, title: { text: "predicted" }, constrain: "domain" },
      yaxis: { ...axis, range: [size - 0.5, -0.5], scaleanchor: "x", constrain: "domain", title: { text: "true" } },
    };
    return plot(`Confusion matrix, ${name}`, Math.min(720, 240 + 26 * size, at("confusion").clientWidth + 90), { data: [layer("right", 0, true), layer("wrong", 4, false)], layout });
  }

  function confusion() {
    const arm = data.arms[at("confused").value];
    if (arm.truth === null) { at("confusion").replaceChildren(make("p", "small", "The true classes of this arm's test objects were not kept.")); return; }
    const truth = data.truths[arm.truth], table = counts(arm, truth), pairs = [];
    table.forEach((row, i) => row.forEach((value, j) => { if (i !== j && value) pairs.push([value, i, j]); }));
    pairs.sort((a, b) => b[0] - a[0]);
    const list = make("ol", "", ...pairs.slice(0, 12).map(([value, i, j]) => make("li", "", `${className(truth, i)} → ${className(truth, j)}: ${value}`)));
    at("confusion").replaceChildren(make("div", "confusion", matrix(arm.name, truth, table), make("div", "", make("h3", "", "Most often confused"), list)));
  }

  // What is drawn from predictions waits, as the other charts do, until it comes near the window.
  function later(element, change, ...controls) {
    if (!element) return;
    for (const control of controls) control.addEventListener("change", change);
    const watch = new IntersectionObserver(([entry]) => { if (entry.isIntersecting) { watch.disconnect(); change(); } }, { rootMargin: "400px" });
    watch.observe(element);
    addEventListener("beforeprint", () => { if (!element.hasChildNodes()) change(); });
  }
  if (at("first")) {
    later(at("settings"), compare, at("first"), at("second"));
    at("swap").addEventListener("click", () => {
      [at("first").value, at("second").value] = [at("second").value, at("first").value];
      compare();
    });
  }
  if (at("confused")) later(at("confusion"), confusion, at("confused"));
})();

// Draws what a reader chooses: two arms compared, one arm's confusions. Text enters the page as text only, never as HTML.
"use strict";
(() => {
  const root = document.documentElement, at = (id) => document.getElementById(id);

  // Theme: the system's, until the button (or ?theme=dark) says otherwise.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const asked = new URLSearchParams(location.search).get("theme");
  if (asked === "dark" || asked === "light") root.dataset.theme = asked;
  at("theme").hidden = false;
  at("theme").addEventListener("click", () => { root.dataset.theme = shown() === "dark" ? "light" : "dark"; turn(0, 0); });
  dark.addEventListener("change", () => turn(0, 0));

  const data = JSON.parse(at("data").textContent);
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

  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const drawn = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const className = (truth, number) => truth.classes[number] ?? `class ${number}`;

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

  function byClass({ truth, gain, loss }) {
    const found = truth.classes.map((name) => ({ name, gain: 0, loss: 0 }));
    truth.labels.forEach((label, object) => { found[label].gain += gain[object]; found[label].loss += loss[object]; });
    const rows = found.filter((row) => row.gain || row.loss).sort((a, b) => (b.gain - b.loss) - (a.gain - a.loss));
    const most = Math.max(1, ...rows.map((row) => Math.max(row.gain, row.loss)));
    const length = (name, value) => { const mark = make("i", name); mark.style.width = `${100 * value / most}%`; return mark; };
    return make("div", "flips", ...rows.map((row) => {
      const line = make("div", "flip", make("span", "", row.name), make("span", "number", String(row.loss)),
        length("minus", row.loss), length("plus", row.gain), make("span", "number", String(row.gain)));
      line.title = `${row.name}: ${row.gain} gained, ${row.loss} lost`;
      return line;
    }));
  }

  // The objects that flip in most seeds, at most `most` of each kind; of equals those with a cloud to draw.
  function objects(first, second, found, counts, most) {
    const { truth, seeds } = found, cloud = (object) => Number(!!truth.clouds && truth.clouds.places.has(object));
    const chosen = [...counts.keys()].filter((object) => counts[object])
      .sort((a, b) => counts[b] - counts[a] || cloud(b) - cloud(a) || a - b).slice(0, most);
    const said = (arm, object) => [...new Set(seeds.map((seed) => className(truth, arm.predictions[arm.seeds.indexOf(seed)][object])))].join(", ");
    return make("div", "objects", ...chosen.map((object) => {
      const words = make("p", "", make("b", "", className(truth, truth.labels[object])), make("span", "", ` object ${object}, ${counts[object]}/${seeds.length} seeds`),
        make("br"), make("span", "", "first: "), said(first, object), make("br"), make("span", "", "second: "), said(second, object));
      return make("div", "object", ...(cloud(object) ? [canvas(truth.clouds, object, className(truth, truth.labels[object]))] : []), words);
    }));
  }

  function compare() {
    const first = data.arms[at("first").value], second = data.arms[at("second").value];
    at("settings").replaceChildren(settings(first, second));
    if (!at("flips")) return;
    clouds.length = 0;
    if (first.truth === null || first.truth !== second.truth) {
      at("flips").replaceChildren(make("p", "small", "Not the same test objects, or true classes were not kept: no gains and losses between these two."));
      return;
    }
    const found = flips(first, second), sum = (counts) => counts.reduce((total, value) => total + value, 0);
    const number = (name, value) => { const mark = make("b", name, String(value)); mark.dataset.count = name; return mark; };
    const tally = make("p", "tally", "Over ", String(found.seeds.length), ` seeds and ${found.truth.labels.length} test objects, `, make("b", "", first.name), " is right where ",
      make("b", "", second.name), " is wrong ", number("gain", sum(found.gain)), " times, and wrong where it is right ", number("loss", sum(found.loss)), " times.");
    const parts = [make("h3", "", "Gained and lost"), tally, make("h3", "", "Model against model, seed by seed (exact McNemar, mid-p)"), tests(found), make("h3", "", "By class: lost to the left, gained to the right"), byClass(found)];
    for (const [word, counts] of [["Objects gained", found.gain], ["Objects lost", found.loss]]) {
      if (sum(counts)) parts.push(make("h3", "", found.truth.clouds ? `${word} (drag, or arrow keys, to turn)` : word), objects(first, second, found, counts, 6));
    }
    at("flips").replaceChildren(...parts);
    turn(0, 0);
  }

  // Clouds: all turn together. Points are int8 with the third axis towards the viewer and the second upwards.

  const clouds = [];
  let yaw = 0.6, pitch = 0.35;
  function canvas(stored, object, name) {
    const element = make("canvas"), place = stored.places.get(object);
    Object.assign(element, { width: 280, height: 280, tabIndex: 0 });
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${name}, point cloud ${object}`);
    clouds.push({ element, points: stored.bytes.subarray(3 * stored.points * place, 3 * stored.points * (place + 1)) });
    let last = null;
    element.addEventListener("pointerdown", (event) => { last = event; element.setPointerCapture(event.pointerId); });
    element.addEventListener("pointermove", (event) => {
      if (last) { turn((event.clientX - last.clientX) / 90, (event.clientY - last.clientY) / 90); last = event; }
    });
    for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => { last = null; });
    element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] }[event.key];
      if (step) { event.preventDefault(); turn(...step); }
    });
    return element;
  }

  function turn(sideways, upwards) {
    yaw += sideways;
    pitch = Math.max(-1.5, Math.min(1.5, pitch + upwards));
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const ink = getComputedStyle(root).getPropertyValue("--accent");
    for (const { element, points } of clouds) {
      const context = element.getContext("2d"), half = element.width / 2, scale = 0.92 * half / 127;
      context.clearRect(0, 0, element.width, element.height);
      context.fillStyle = ink;
      for (let i = 0; i < points.length; i += 3) {
        const x = cy * points[i] + sy * points[i + 2], depth = cy * points[i + 2] - sy * points[i];
        const y = cp * points[i + 1] - sp * depth, near = (sp * points[i + 1] + cp * depth + 127) / 254, size = 2.5 + 3.5 * near;
        context.globalAlpha = 0.25 + 0.75 * Math.max(0, Math.min(1, near));
        context.fillRect(half + scale * x - size / 2, half - scale * y - size / 2, size, size);
      }
    }
  }

  // Confusions

  function counts(arm, truth) {
    const size = truth.classes.length, table = Array.from({ length: size }, () => new Uint32Array(size));
    for (const predicted of arm.predictions) truth.labels.forEach((label, object) => { table[label][predicted[object]] += 1; });
    return table;
  }

  function matrix(truth, table) {
    const size = table.length, side = Math.max(13, Math.min(36, 480 / size)), left = 76, top = 70;
    const edge = side * size, svg = drawn("svg", { viewBox: `0 0 ${left + edge + 2} ${top + edge + 2}`, role: "img", "aria-label": "confusion matrix" });
    svg.append(drawn("rect", { class: "plate", x: left, y: top, width: edge, height: edge }));
    table.forEach((row, i) => {
      const total = row.reduce((sum, value) => sum + value, 0), middle = (i + 0.5) * side + 3.5;
      svg.append(drawn("text", { x: left - 5, y: top + middle, "text-anchor": "end" }, className(truth, i)));
      svg.append(drawn("text", { transform: `translate(${left + middle} ${top - 5}) rotate(-90)` }, className(truth, i)));
      row.forEach((value, j) => {
        if (!value) return;
        const cell = drawn("rect", { class: i === j ? "hit" : "miss", x: left + j * side + 0.5, y: top + i * side + 0.5, width: side - 1, height: side - 1,
          "fill-opacity": (0.12 + 0.88 * value / total).toFixed(3) });
        cell.append(drawn("title", {}, `${className(truth, i)} taken for ${className(truth, j)}: ${value} of ${total}`));
        svg.append(cell);
      });
    });
    return make("div", "matrix", svg);
  }

  function confusion() {
    const arm = data.arms[at("confused").value];
    if (arm.truth === null) { at("confusion").replaceChildren(make("p", "small", "The true classes of this arm's test objects were not kept.")); return; }
    const truth = data.truths[arm.truth], table = counts(arm, truth), pairs = [];
    table.forEach((row, i) => row.forEach((value, j) => { if (i !== j && value) pairs.push([value, i, j]); }));
    pairs.sort((a, b) => b[0] - a[0]);
    const list = make("ol", "", ...pairs.slice(0, 12).map(([value, i, j]) => make("li", "", `${className(truth, i)} → ${className(truth, j)}: ${value}`)));
    at("confusion").replaceChildren(make("div", "confusion", matrix(truth, table), make("div", "", make("h3", "", "Most often confused"), list)));
  }

  if (at("first")) {
    for (const id of ["first", "second"]) at(id).addEventListener("change", compare);
    at("swap").addEventListener("click", () => {
      [at("first").value, at("second").value] = [at("second").value, at("first").value];
      compare();
    });
    compare();
  }
  if (at("confused")) { at("confused").addEventListener("change", confusion); confusion(); }
})();

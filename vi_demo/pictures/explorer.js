// The explorer: move a Gaussian q over a target p and watch what both directions of KL say.
//
// A widget mounts it through `render`, and `explorer.py` inlines it in a page of its own, after
// the mathematics. It depends on nothing else.

import {
  abs, atan2, ceil, cos, exp, floor, hypot, log, max, min, round, sin, sqrt, PI, LOG_2PI, PLANE,
  alphaPath, around, bounded, count, descend, ellipseOf, factored, forwardKl, grid, lifted, logOf,
  looked, measure, measurePlane, mixture, optima, plane, random, squared, table,
} from "./explorer_maths.js";

// One state, controls that show it, boards that draw it.

const START = {
  target: "mixture", modes: 3, spread: 3, decay: 0.55, width: 0.5, means: null,
  mu: 0.8, sigma: 1.2, shown: ["forward_kl", "reverse_kl"], alpha: 0.3,
  way: { rate: 0.1, draws: 0, natural: true, seed: 1 },
  plane: { target: "bimodal", m: [1.5, 0.5], s: [1.6, 0.9], angle: 0.5 },
};
const LOOKS = { // label, colour and dash
  forward_kl: ["KL(p‖q), forward", "forward", []],
  reverse_kl: ["KL(q‖p), reverse", "reverse", [7, 3]],
  jensen_shannon: ["Jensen–Shannon", "js", [9, 3, 2, 3]],
  total_variation: ["total variation", "tv", [2, 3]],
};
const COLOURS = ["page", "ink", "quiet", "rule", "target", "forward", "reverse", "js", "tv"];
const DIRECTIONS = ["forward_kl", "reverse_kl"];
// What stands beside panels comes with the page, from explorer.py; here is what a guess is told.
const ANSWERS = {
  optima({ best }) {
    const [f, r] = DIRECTIONS.map((name) => best[name][0].sigma);
    return [f >= r ? 0 : 1, `σ is ${short(f)} by forward KL and ${short(r)} by reverse KL.`];
  },
  move({ read: { forward_kl: f, reverse_kl: r } }) {
    return [f > r ? 0 : 1, `KL(p‖q) is ${short(f)} and KL(q‖p) ${short(r)} for your q.`];
  },
  way({ best: { reverse_kl: all } }) {
    return [all.length === 1 ? 0 : 1, `${all.length}, the crosses in its map.`];
  },
  plane({ p2, state }) {
    const how = { draws: 0, natural: true, rate: 0.2 }, [f, r] = DIRECTIONS.map((name) => {
      let q = factored(state.plane);
      for (let k = 0; k < 60; k++) q = descend(p2, q, name, how);
      return q.l[0] * q.l[2];
    });
    return [f >= r ? 0 : 1, "The sds of its axes multiply to " +
      `${short(f)} at the end of forward KL's and to ${short(r)} at the end of reverse KL's.`];
  },
};

const short = (x) =>
  (Number.isFinite(x) ? String(Number(x.toPrecision(4))) : "∞").replace("-", "−");

/** An element with properties and children. */
function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role") made.setAttribute(key, value);
    else if (key === "mark") made.style.setProperty("--mark", `var(--${value})`);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

const controls = (...parts) => h("div", { className: "controls" }, ...parts);
const button = (label, onclick) => h("button", { type: "button", onclick }, label);

/** Ways to read and to set what an object holds under a key; `kind` is what that changes. */
const linked = (app, object, key, kind) =>
  [() => object[key], (value) => ((object[key] = value), app.changed(kind))];

const slider = (app, label, get, set, min, max, step) =>
  field(app, label, get, set, { type: "range", min, max, step });

/** A number that may be typed, dragged or stepped, shown wherever it comes from. */
function field(app, label, get, set, { type = "number", ...limits } = {}) {
  const { min: low = -Infinity, max: high = Infinity } = limits, out = h("output");
  const input = h("input", { type, step: "any", ...limits, "aria-label": label });
  input.addEventListener("input", () => {
    const value = input.valueAsNumber, fits = value >= low && value <= high;
    input.setAttribute("aria-invalid", String(!fits));
    if (fits) set(value);
  });
  app.shown.push(() => {
    if (document.activeElement !== input || type === "range") input.value = get();
    out.value = short(get());
  });
  return h("label", { className: "field" }, `${label} `, input, ...(type === "range" ? [out] : []));
}

function choice(app, label, options, get, set) {
  const picks = Object.entries(options).map(([value, text]) => h("option", { value }, text));
  const input = h("select", { "aria-label": label, onchange: () => set(input.value) }, ...picks);
  app.shown.push(() => (input.value = get()));
  return h("label", { className: "field" }, `${label} `, input);
}

function tick(app, label, get, set, mark) {
  const input = h("input", { type: "checkbox", onchange: () => set(input.checked) });
  app.shown.push(() => (input.checked = get()));
  return h("label", { className: "tick", ...(mark && { mark }) }, input, ` ${label}`);
}

/** Buttons that put q where the fits of a run are. */
const fitButtons = (fits, put) => Object.entries(fits ?? {}).map(([name, fit]) =>
  button(`q = ${name.replace("_kl", " KL")} fit`, () => put(fit)));

/**
 * A canvas with axes. Where a pointer takes hold, `grab` says what its moves do, in the units of
 * the axes; `follow` is for boards on which the pointer's place is all that matters.
 */
function board(app, name, label, { height, touch = "none", view, draw, follow, grab, key }) {
  const canvas = h("canvas", {
    tabIndex: 0, role: "application", "aria-label": label, "aria-roledescription": "graph",
  });
  canvas.dataset.board = name;
  Object.assign(canvas.style, { height: `${height}px`, touchAction: touch });
  const b = { canvas, c: canvas.getContext("2d"), height };
  b.paint = () => {
    const width = canvas.clientWidth, ratio = globalThis.devicePixelRatio || 1, now = view();
    if (!width) return;
    canvas.dataset.view = now;
    const [w, t] = [round(width * ratio), round(height * ratio)], [x0, x1, y0, y1] = now;
    if (canvas.width !== w || canvas.height !== t) [canvas.width, canvas.height] = [w, t];
    Object.assign(b, {
      width, view: now, colours: app.colours,
      X: (x) => ((x - x0) / (x1 - x0)) * width, Y: (y) => height - ((y - y0) / (y1 - y0)) * height,
      x: (u) => x0 + (u / width) * (x1 - x0), y: (v) => y0 + (1 - v / height) * (y1 - y0),
    });
    b.c.setTransform(ratio, 0, 0, ratio, 0, 0);
    b.c.clearRect(0, 0, width, height);
    draw(b);
  };
  holding(app, b, grab ?? (follow && ((x, y) => (follow(x, y), follow))));
  canvas.addEventListener("keydown", (e) => {
    const far = e.shiftKey ? 5 : 1, is = (more, less) => (e.key === more) - (e.key === less);
    const dx = is("ArrowRight", "ArrowLeft"), dy = is("ArrowUp", "ArrowDown");
    const grow = is("+", "-"), turn = is("]", "[");
    if (!(dx || dy || grow || turn)) return;
    e.preventDefault();
    key({ dx: dx * far, dy: dy * far, grow, turn });
  });
  app.boards.push(b);
  return canvas;
}

/** What a pointer does to a board: it takes hold, moves, and lets go. */
function holding(app, b, grab) {
  const { canvas } = b;
  let move = null;
  const place = (e) => {
    const box = canvas.getBoundingClientRect();
    return [b.x(e.clientX - box.left), b.y(e.clientY - box.top)];
  };
  canvas.addEventListener("pointerdown", (e) => {
    const [x, y] = place(e), near = e.pointerType === "touch" ? 24 : 14;
    const at = (u, v) => hypot(u - b.X(x), v - b.Y(y)) < near;
    app.held = move = grab?.(x, y, b, at);
    if (!move) return;
    if (e.isTrusted) canvas.setPointerCapture(e.pointerId);
    canvas.focus({ preventScroll: true });
    e.preventDefault();
  });
  canvas.addEventListener("pointermove", (e) => move?.(...place(e)));
  const drop = () => {
    if (!move) return;
    app.held = move = null;
    app.changed("view");
  };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", drop);
}

// What boards draw.

function trace(c, points) {
  c.beginPath();
  for (const [u, v] of points) c.lineTo(u, v);
}

function stroke({ c }, points, colour, dash = [], thick = 2) {
  trace(c, points);
  Object.assign(c, { strokeStyle: colour, lineWidth: thick, lineJoin: "round" });
  c.setLineDash(dash);
  c.stroke();
  c.setLineDash([]);
}

/** Where a function is on a board, one point a pixel. */
const points = (b, fn) => count(b.width + 1, (u) => [u, b.Y(fn(b.x(u)))]);

/** Fill between two curves of points wherever the first is higher. */
function between(b, upper, lower, colour, alpha) {
  const edge = upper.map(([u, v], k) => [u, min(v, lower[k][1])]);
  trace(b.c, [...edge, ...lower.slice().reverse()]);
  Object.assign(b.c, { fillStyle: colour, globalAlpha: alpha });
  b.c.fill();
  b.c.globalAlpha = 1;
}

function dot({ c }, u, v, radius, fill, edge) {
  c.beginPath();
  c.arc(u, v, radius, 0, 2 * PI);
  Object.assign(c, { fillStyle: fill, strokeStyle: edge, lineWidth: 1.5 });
  c.fill();
  c.stroke();
}

function words({ c, colours }, text, u, v, align = "left", shade = "quiet") {
  const font = "12px system-ui, sans-serif";
  Object.assign(c, { fillStyle: colours[shade], strokeStyle: colours.page, font, lineWidth: 3,
    lineJoin: "round", textAlign: align });
  c.strokeText(text, u, v); // to be read over lines
  c.fillText(text, u, v);
}

/** Numbers along the lower edge. */
function axis(b, title) {
  const [lo, hi] = b.view, step = 10 ** floor(Math.log10((hi - lo) / 3));
  const every = (hi - lo) / step > 12 ? 5 * step : (hi - lo) / step > 6 ? 2 * step : step;
  for (let x = ceil(lo / every) * every; x < hi; x += every) {
    const u = b.X(x), inside = u > 12 && u < b.width - 30;
    if (inside) words(b, short(round(x / every) * every), u, b.height - 4, "center");
  }
  words(b, title, b.width - 4, b.height - 4, "right");
}

/** A picture of shades of a colour, kept until what it shows changes. */
function backdrop(b, app, version, colour, shading) {
  const now = [version, b.width, b.view, app.dark].join();
  if (b.known !== now) {
    const [w, t] = [ceil(b.width / 2), ceil(b.height / 2)], shade = shading();
    const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    const image = new ImageData(w, t);
    for (let k = 0; k < w * t; k++) {
      const opaque = 255 * shade(b.x(2 * (k % w) + 1), b.y(2 * floor(k / w) + 1));
      image.data.set([...rgb, opaque], 4 * k);
    }
    [b.known, b.sheet] = [now, h("canvas", { width: w, height: t })];
    b.sheet.getContext("2d").putImageData(image, 0, 0);
  }
  b.c.drawImage(b.sheet, 0, 0, b.width, b.height);
}

/** Two ways down from one q, a step at a time. */
function walker(app, kind, start, target) {
  const w = { timer: 0 };
  w.reset = () => {
    cancelAnimationFrame(w.timer);
    w.timer = 0;
    w.rng = random(app.state.way.seed);
    w.paths = Object.fromEntries(DIRECTIONS.map((name) => [name, [start()]]));
  };
  w.step = (times = 1) => {
    const how = { ...app.state.way, rng: w.rng };
    for (let k = 0; k < times; k++) {
      for (const name of DIRECTIONS) {
        w.paths[name].push(descend(target(), w.paths[name].at(-1), name, how));
      }
    }
    app.changed(kind);
  };
  w.stop = () => {
    cancelAnimationFrame(w.timer);
    w.timer = 0;
    app.changed(kind);
  };
  const frame = () => {
    w.timer = requestAnimationFrame(frame);
    w.step();
    if (w.paths.forward_kl.length > 400) w.stop();
  };
  w.play = () => {
    if (w.timer) return w.stop();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return w.step(200);
    w.timer = requestAnimationFrame(frame);
    app.changed(kind);
  };
  return w;
}

function wayControls(app, walk, kind) {
  const of = (key) => linked(app, app.state.way, key, kind), [draws, setDraws] = of("draws");
  const play = button("Play", walk.play), steps = h("span", { className: "quiet" });
  app.shown.push(() => {
    play.textContent = walk.timer ? "Pause" : "Play";
    steps.textContent = ` ${walk.paths.forward_kl.length - 1} steps`;
  });
  const kinds = { 0: "exact", 1: "1 draw", 10: "10 draws", 100: "100 draws" };
  return controls(
    h("span", { className: "keys" }, play, button("Step", () => walk.step()),
      button("Reset", () => app.changed(kind)), steps),
    slider(app, "step size", ...of("rate"), 0.01, 1, 0.01),
    choice(app, "gradient", kinds, draws, (v) => setDraws(Number(v))),
    tick(app, "natural gradient", ...of("natural")));
}

/** The four readouts as a table that speaks when it changes. */
function readings(app, title, get) {
  const rows = Object.entries(LOOKS).map(([name, [label, mark]]) => {
    const out = h("output", { name });
    app.shown.push(() => (out.value = short(get()[name])));
    return h("tr", {}, h("th", { scope: "row", mark }, label), h("td", {}, out));
  });
  return h("table", { className: "readings" }, h("caption", {}, title), h("tbody", {}, ...rows));
}

/** A question to guess at before looking. */
function prompt(app, name) {
  const { question, guesses } = app.words[name], out = h("output", { className: "answer" });
  const picks = guesses.map((text, k) => {
    const answered = () => {
      const [right, why] = ANSWERS[name](app);
      out.value = `${right === k ? "Yes." : "No."} ${why}`;
    };
    const input = h("input", { type: "radio", name: `${name}-${app.id}`, onchange: answered });
    return h("label", {}, input, ` ${text} `);
  });
  return h("fieldset", {}, h("legend", {}, question), ...picks, out);
}

const panel = (app, name, ...parts) => {
  const { title, text } = app.words[name];
  return h("section", { className: `panel ${name}`, "aria-label": title },
    h("h2", {}, title), h("p", {}, text), prompt(app, name), ...parts);
};

// The line: its best Gaussians, a q to move, and ways down.

const curve = (b, q) => {
  const logq = logOf(q);
  return points(b, (x) => exp(logq(x)));
};

const lineOf = ({ mean, covariance }) => ({ mu: mean[0], sigma: sqrt(covariance[0][0]) });

/** Draw p and its axis; the points of p. */
function targetLine(b, app) {
  const p = points(b, (x) => exp(app.p.logp(x))), { target, rule } = b.colours;
  between(b, p, points(b, () => 0), target, 0.22);
  stroke(b, p, target, [], 1.5);
  b.c.fillStyle = rule;
  b.c.fillRect(0, b.Y(0), b.width, 1);
  axis(b, "x");
  words(b, "p", 8, 16, "left", "target");
  return p;
}

/** A height that p and most of what some guides rise to are within. */
const heightOf = (app, qs) => {
  const most = exp(app.p.peak);
  return 1.1 * max(most, ...qs.map((q) => min(1 / (q.sigma * sqrt(2 * PI)), 2.5 * most)));
};

function optimaPanel(app) {
  const { state } = app, shown = () => Object.keys(LOOKS).filter((n) => state.shown.includes(n));
  const at = () => round(state.alpha * (app.path.alphas.length - 1));
  const now = () => app.path.branches[app.path.best[at()]][at()];
  const tops = () => heightOf(app, [...shown().map((n) => app.best[n][0]), now()].filter(Boolean));
  const [alpha, setAlpha] = linked(app, state, "alpha", "alpha");
  const slide = (v) => setAlpha(bounded(v, 0, 1)), key = ({ dx }) => slide(state.alpha + dx / 50);
  const curves = board(app, "optima", "The target and its best Gaussians", {
    height: 240, touch: "pan-y", key,
    view: () => [...app.span, -0.16 * tops(), tops()],
    draw(b) {
      targetLine(b, app);
      stroke(b, curve(b, now()), b.colours.ink, [1, 3], 2.5);
      shown().forEach((name, row) => {
        const colour = b.colours[LOOKS[name][1]];
        app.best[name].forEach((q, k) => {
          stroke(b, curve(b, q), colour, k ? [1, 3] : LOOKS[name][2], k ? 1 : 2);
          dot(b, b.X(q.mu), b.Y(0) + 6 + 4 * row, 3, k ? b.colours.page : colour, colour);
        });
      });
    },
  });
  const strip = board(app, "strip", "The mean of the best Gaussian along alpha", {
    height: 120, touch: "pan-y", key, follow: slide, view: () => [-0.03, 1.03, ...app.span],
    draw: (b) => drawStrip(b, app.path, state.alpha),
  });
  const toggles = Object.entries(LOOKS).map(([name, [label, mark]]) => tick(app, label,
    () => state.shown.includes(name), (on) => {
      state.shown = on ? [...state.shown, name] : state.shown.filter((n) => n !== name);
      app.changed("alpha");
    }, mark));
  return panel(app, "optima", targetControls(app), controls(...toggles), curves,
    slider(app, "α, from reverse to forward KL", alpha, slide, 0, 1, 0.01), strip);
}

/** The means of all branches along α, the best of them strong, and where it jumps. */
function drawStrip(b, { alphas, branches, best, jumps }, alpha) {
  const { c, X, Y } = b, { ink, quiet, reverse } = b.colours;
  branches.forEach((branch, which) => branch.forEach((q, k) => {
    const on = best[k] === which;
    if (q) dot(b, X(alphas[k]), Y(q.mu), on ? 2.5 : 1, on ? ink : quiet, "transparent");
  }));
  for (const a of [...jumps, alpha]) {
    c.fillStyle = a === alpha ? ink : reverse;
    c.fillRect(X(a) - 0.5, 0, a === alpha ? 2 : 1, b.height);
  }
  words(b, "μ", 6, 14);
  words(b, "reverse, α = 0", X(0), b.height - 4);
  words(b, "forward, α = 1", X(1), b.height - 4, "right");
  jumps.forEach((a, k) => {
    const [side, off] = a < 0.7 ? ["left", 5] : ["right", -5];
    words(b, `jumps at ${a.toFixed(2)}`, X(a) + off, b.height - 20 - 14 * k, side);
  });
}

/** Which target, and the shape of a mixture. */
function targetControls(app) {
  const { state } = app, shape = (label, key, ...limits) => {
    const [get, set] = linked(app, state, key, "target");
    const anew = (v) => {
      if (key === "modes" || key === "spread") state.means = null;
      set(v);
    };
    return slider(app, label, get, anew, ...limits);
  };
  const sliders = controls(
    shape("modes", "modes", 2, 5, 1), shape("spread", "spread", 0, 8, 0.05),
    shape("weight decay", "decay", 0.05, 1, 0.01),
    shape("component width", "width", 0.05, 2, 0.01));
  app.shown.push(() => (sliders.hidden = state.target !== "mixture"));
  if (!app.data?.line) return sliders;
  const targets = { own: app.data.name, mixture: "a mixture of Gaussians" };
  const which = choice(app, "target", targets, ...linked(app, state, "target", "target"));
  return h("div", {}, which, sliders);
}

const meansOf = ({ means, modes, spread }) =>
  means ?? count(modes, (k) => spread * (k - (modes - 1) / 2));

const weightsOf = ({ modes, decay }) => {
  const weights = count(modes, (k) => decay ** k), total = weights.reduce((a, b) => a + b);
  return weights.map((w) => w / total);
};

function moveMode(app, k, to) {
  app.state.means = meansOf(app.state).map((m, i) => (i === k ? to : m));
  app.changed("target");
}

/** Number fields for the places of the modes, which marks below the axis stand for. */
function modeControls(app) {
  const places = () => (app.state.target === "mixture" ? meansOf(app.state) : []);
  const fields = count(5, (k) =>
    field(app, `mode ${k + 1}`, () => places()[k] ?? 0, (v) => moveMode(app, k, v)));
  app.shown.push(() => fields.forEach((f, k) => (f.hidden = k >= places().length)));
  return controls(...fields);
}

function setQ(app, mu, sigma) {
  Object.assign(app.state, { mu, sigma });
  app.changed("q");
}

const nudge = (app) => ({ dx, dy, grow }) => {
  const { mu, sigma } = app.state, [lo, hi] = app.span;
  setQ(app, mu + (dx * (hi - lo)) / 200, sigma * 1.02 ** (dy + grow));
};

/** What a drag at a place of the line does: a mode, a side of q, or all of it. */
function grabLine(app, x, y, b, at) {
  const { state } = app, { mu, sigma } = state, v = b.Y(y);
  if (state.target === "mixture" && v > b.Y(0) - 4) {
    const k = meansOf(state).findIndex((m) => at(b.X(m), v));
    if (k >= 0) return (to) => moveMode(app, k, to);
  }
  const away = abs(x - mu) / sigma;
  if (away > 0.7 && away < 3) return (to) => setQ(app, mu, max(abs(to - mu) / away, 1e-3));
  return (to) => setQ(app, mu + to - x, sigma);
}

function movePanel(app) {
  const { state, data } = app, top = () => heightOf(app, [state]);
  const label = "Target p and your q; arrows left and right move μ, up and down σ";
  const canvas = board(app, "move", label, {
    height: 260, touch: "pan-y", view: () => [...app.span, -0.14 * top(), top()],
    grab: (...at) => grabLine(app, ...at), key: nudge(app),
    draw(b) {
      const p = targetLine(b, app), q = curve(b, state), { colours: of } = b;
      between(b, p, q, of.forward, 0.3);
      between(b, q, p, of.reverse, 0.3);
      for (const [name, fit] of Object.entries(state.target === "own" ? data.fits : {})) {
        const [, colour, dash] = LOOKS[name] ?? [name, "quiet", [2, 4]];
        stroke(b, curve(b, lineOf(fit)), of[colour], dash, 1);
      }
      stroke(b, q, of.ink, [], 2.5);
      words(b, "p > q: forward KL pays", b.width - 8, 16, "right", "forward");
      words(b, "q > p: reverse KL pays", b.width - 8, 32, "right", "reverse");
      if (state.target !== "mixture") return;
      for (const m of meansOf(state)) dot(b, b.X(m), b.Y(0) + 8, 6, of.target, of.page);
    },
  });
  const of = (label, key, limits) => field(app, label, ...linked(app, state, key, "q"), limits);
  const fits = fitButtons(data?.line && data.fits, (fit) => {
    const { mu, sigma } = lineOf(fit);
    setQ(app, mu, sigma);
  });
  return panel(app, "move", canvas,
    controls(of("μ", "mu"), of("σ", "sigma", { min: 1e-3, max: 1e6 }), ...fits),
    modeControls(app),
    readings(app, "of your q, in nats but for the last", () => app.read));
}

/** KL over (μ, log σ) on a coarse grid, looked up between its points. */
function landscape(p, name, [x0, x1, y0, y1]) {
  const [nx, ny] = [49, 33], z = count(31, (k) => (k - 15) / 3);
  const masses = z.map((u) => exp(-0.5 * u * u) / (3 * sqrt(2 * PI)));
  const value = (mu, sigma) => name === "forward_kl" ? forwardKl(p, { mu, sigma })
    : z.reduce((sum, u, k) => sum - masses[k] * p.logp(mu + sigma * u),
      -0.5 * (1 + LOG_2PI) - log(sigma));
  const values = count(nx, (i) => count(ny, (j) =>
    value(x0 + (i / (nx - 1)) * (x1 - x0), exp(y0 + (j / (ny - 1)) * (y1 - y0)))));
  return (x, y) => looked(values, ((x - x0) / (x1 - x0)) * (nx - 1),
    (row) => looked(row, ((y - y0) / (y1 - y0)) * (ny - 1)));
}

function wayPanel(app) {
  const { state, walk } = app;
  const view = () => [...app.span, log(0.5 * app.narrow), log(2.5 * app.p.sd)];
  const maps = DIRECTIONS.map((name) => {
    const [label, colour] = LOOKS[name];
    return board(app, name, `${label} over μ and log σ; arrows move q`, {
      height: 250, view, key: nudge(app), follow: (x, y) => setQ(app, x, exp(y)),
      draw(b) {
        const { [colour]: shade, ink, page } = b.colours, path = walk.paths[name];
        backdrop(b, app, app.version, shade, () => {
          const values = landscape(app.p, name, b.view);
          return (x, y) => max(0, 0.55 - 0.05 * floor(2 * Math.log2(1 + 8 * max(values(x, y), 0))));
        });
        const at = (mu, sigma) => [b.X(mu), b.Y(log(sigma))];
        for (const q of app.best[name]) {
          const [u, v] = at(q.mu, q.sigma);
          words(b, "×", u, v + 4, "center", "ink");
        }
        stroke(b, path.map(({ m, l }) => at(m[0], l[0])), ink, [], 1.5);
        dot(b, ...at(state.mu, state.sigma), 6, page, ink);
        const { m, l } = path.at(-1);
        if (path.length > 1) dot(b, ...at(m[0], l[0]), 4, shade, ink);
        words(b, label, 8, 16, "left", "ink");
        words(b, "log σ ↑", 8, 32);
        axis(b, "μ");
      },
    });
  });
  return panel(app, "way", wayControls(app, walk, "q"), h("div", { className: "pair" }, ...maps));
}

// The plane.

/** The place on an ellipse of `sds` at an angle from its first axis. */
const onEllipse = ({ m, s, angle }, turn, sds = 2) => {
  const a = sds * s[0] * cos(turn), e = sds * s[1] * sin(turn), c = cos(angle), n = sin(angle);
  return [m[0] + c * a - n * e, m[1] + n * a + c * e];
};

const oval = (b, q, ...look) => stroke(b, count(73, (t) => {
  const [x, y] = onEllipse(q, (t * PI) / 36);
  return [b.X(x), b.Y(y)];
}), ...look);

/** Where the handles of q are, in pixels: the ends of its axes, and a round one that turns it. */
function handles(b, q) {
  const place = ([x, y]) => [b.X(x), b.Y(y)], [u, v] = place(q.m);
  const ends = [0, PI / 2].map((turn) => place(onEllipse(q, turn)));
  const [du, dv] = [ends[0][0] - u, ends[0][1] - v], more = 1 + 26 / (hypot(du, dv) || 1);
  return { ends, turner: [u + more * du, v + more * dv] };
}

function grabPlane(app, x, y, b, at) {
  const q = app.state.plane, { ends, turner } = handles(b, q), { m } = q;
  const put = (change) => (Object.assign(q, change), app.changed("plane"));
  if (at(...turner)) return (x, y) => put({ angle: atan2(y - m[1], x - m[0]) });
  const k = ends.findIndex((end) => at(...end)), turn = q.angle + (k * PI) / 2;
  if (k < 0) {
    const from = [x - m[0], y - m[1]];
    return (x, y) => put({ m: [x - from[0], y - from[1]] });
  }
  return (x, y) => {
    const long = abs((x - m[0]) * cos(turn) + (y - m[1]) * sin(turn)) / 2;
    put({ s: q.s.map((s, i) => (i === k ? max(long, 0.02) : s)) });
  };
}

function drawPlane(b, app) {
  const { p2, data, state: { plane: q } } = app, own = q.target === "own";
  const { ink, page } = b.colours;
  backdrop(b, app, p2.name ?? "own", b.colours.target, () => {
    const levels = [0.1, 0.5, 1.2, 2.3, 4.6, 7];
    return (x, y) => 0.11 * levels.filter((d) => p2.peak - p2.logp(x, y) < d).length;
  });
  for (const name of DIRECTIONS) {
    const [, colour, dash] = LOOKS[name], path = app.walk2.paths[name], { m, l } = path.at(-1);
    if (path.length > 1) oval(b, ellipseOf(m, squared(l)), b.colours[colour], dash);
    if (own && data.fits[name]) oval(b, planeOf(data.fits[name]), b.colours[colour], dash, 1);
  }
  oval(b, q, ink, [], 2.5);
  const { ends, turner } = handles(b, q), [x, y] = own ? data.names : ["x", "y"];
  dot(b, ...turner, 6, page, ink);
  for (const end of [[b.X(q.m[0]), b.Y(q.m[1])], ...ends]) dot(b, ...end, 6, ink, page);
  axis(b, x);
  words(b, `${y} ↑`, 8, 16);
}

const planeOf = ({ mean, covariance: [[xx, xy], [, yy]] }) => ellipseOf(mean, [xx, xy, yy]);

function planePanel(app) {
  const { data, state: { plane: q } } = app;
  const put = (change) => (Object.assign(q, change), app.changed("plane"));
  const label = "Contours of p and the ellipse of q; arrows move it, + and − scale it, " +
    "[ and ] turn it";
  const canvas = board(app, "plane", label, {
    height: 340, view: () => app.box, grab: (...at) => grabPlane(app, ...at),
    draw: (b) => drawPlane(b, app),
    key({ dx, dy, grow, turn }) {
      const { m, s, angle } = q, [x0, x1, y0, y1] = app.box;
      put({ m: [m[0] + (dx * (x1 - x0)) / 200, m[1] + (dy * (y1 - y0)) / 200],
        s: s.map((v) => v * 1.03 ** grow), angle: angle + 0.05 * turn });
    },
  });
  const names = Object.fromEntries(Object.entries(PLANE).map(([name, p]) => [name, p.label]));
  const targets = { ...(data?.plane && { own: data.name }), ...names };
  const part = (label, key, k, limits) => field(app, label, () => q[key][k],
    (v) => put({ [key]: q[key].map((x, i) => (i === k ? v : x)) }), limits);
  const fits = fitButtons(data?.plane && data.fits, (fit) => put(planeOf(fit)));
  const which = choice(app, "target", targets, ...linked(app, q, "target", "plane target"));
  return panel(app, "plane", which, canvas, wayControls(app, app.walk2, "plane"),
    controls(part("mean x", "m", 0), part("mean y", "m", 1),
      part("first sd", "s", 0, { min: 1e-3 }), part("second sd", "s", 1, { min: 1e-3 }),
      field(app, "angle", ...linked(app, q, "angle", "plane")), ...fits),
    readings(app, "of your q in the plane", () => app.read2));
}

// Around the panels: links, files, Python.

/** A script with vi_demo that prints the numbers shown: a template of explorer.py, filled. */
export function python(scripts, state, dim, data) {
  const flat = dim === 1, q = state.plane, target = flat ? state.target : q.target;
  const [xx, xy, yy] = squared(factored(q).l), list = JSON.stringify;
  const values = {
    dim, mu: state.mu, sigma: state.sigma, width: state.width, ring: PLANE.ring.constant,
    weights: list(weightsOf(state)), means: list(meansOf(state)),
    mean: list(flat ? [state.mu] : q.m),
    covariance: list(flat ? [[state.sigma ** 2]] : [[xx, xy], [xy, yy]]),
    folder: list(data?.folder), sites: list(data?.sites),
  };
  const fill = (text) => text.replace(/<(\w+)>/g, (_, name) => values[name]);
  if (target === "own") return fill(scripts.own);
  values.log_p = fill(scripts[target]);
  values.q = fill(flat ? scripts.line : scripts.plane);
  return fill(scripts.whole);
}

const download = (name, href) => h("a", { href, download: name }).click();

/** All boards on one sheet. */
function sheetOf(app) {
  const all = app.boards.map((b) => b.canvas).filter((canvas) => canvas.width), gap = 16;
  const sheet = h("canvas", { width: max(...all.map((canvas) => canvas.width)),
    height: all.reduce((sum, canvas) => sum + canvas.height + gap, 0) });
  const c = sheet.getContext("2d");
  let top = 0;
  c.fillStyle = app.colours.page;
  c.fillRect(0, 0, sheet.width, sheet.height);
  for (const canvas of all) {
    c.drawImage(canvas, 0, top);
    top += canvas.height + gap;
  }
  return sheet.toDataURL();
}

function sharePanel(app) {
  const text =
    h("textarea", { readOnly: true, hidden: true, rows: 8, "aria-label": "copied text" });
  const copy = (what) => {
    Object.assign(text, { value: what, hidden: false });
    text.select();
    navigator.clipboard?.writeText(what).catch(() => {}); // it stays selected, for the keyboard
  };
  const link = () => copy(`${location.href.split("#")[0]}#${encoded(app.state)}`);
  const json = () => JSON.stringify({ state: app.state, divergences: app.read, optima: app.best,
    jumps: app.path.jumps, plane: app.read2 }, null, 2);
  const script = (dim) => () => copy(python(app.scripts, app.state, dim, app.data));
  return h("footer", { className: "controls" }, ...(app.page ? [button("Copy link", link)] : []),
    button("Copy as Python", script(1)), button("Copy the plane as Python", script(2)),
    button("Download PNG", () => download("explorer.png", sheetOf(app))),
    button("Download JSON", () =>
      download("explorer.json", `data:application/json,${encodeURIComponent(json())}`)), text);
}

/** The state as text that JSON reads back to the last digit. */
const encoded = (state) => encodeURIComponent(JSON.stringify(state));

/** The state that a link holds; `start` where it is not a link of this page. */
export function decoded(hash, start = START, data = null) {
  try {
    const { way, plane, ...rest } = JSON.parse(decodeURIComponent(hash.replace(/^#/, "")));
    const state = { ...start, ...rest, way: { ...start.way, ...way },
      plane: { ...start.plane, ...plane } };
    if (sound(state, data)) return state;
  } catch {
    // told by where it begins
  }
  return structuredClone(start);
}

function sound({ plane: q, way, means, target, shown, modes, alpha, ...state }, data) {
  const { mu, sigma, spread, decay, width } = state;
  return [mu, spread, way.seed, q.angle, ...q.m, ...(means ?? [])].every(Number.isFinite) &&
    [sigma, decay, width, way.rate, ...q.s, alpha + 1].every((x) => x > 0 && x < Infinity) &&
    [2, 3, 4, 5].includes(modes) && (!means || means.length === modes) && alpha <= 1 &&
    [0, 1, 10, 100].includes(way.draws) && shown.every((name) => name in LOOKS) &&
    q.m.length === 2 && q.s.length === 2 &&
    (target === "mixture" || (target === "own" && data?.line)) &&
    (q.target in PLANE || (q.target === "own" && data?.plane));
}

function begin(model) {
  const data = model.get("data") ?? null, page = Boolean(model.get("page"));
  const start = structuredClone(START), { words, scripts } = model.get("text");
  const fit = data && (data.fits.reverse_kl ?? Object.values(data.fits)[0]);
  if (data?.line) Object.assign(start, { target: "own" }, fit && lineOf(fit));
  if (data?.plane) Object.assign(start.plane, { target: "own" }, fit && planeOf(fit));
  return { data, page, words, scripts, state: decoded(page ? location.hash : "", start, data) };
}

/** Keep what Python holds of q and what is drawn the same, whoever moves it. */
function bridge(app, model) {
  const { state } = app, plane = Boolean(app.data?.plane), kind = plane ? "plane" : "q";
  let sending = false;
  const take = () => {
    if (sending) return;
    const [mu, sigma, mean, covariance] = KEPT.map((key) => model.get(key));
    if (plane) Object.assign(state.plane, planeOf({ mean, covariance }));
    else Object.assign(state, { mu, sigma });
    app.changed(kind);
  };
  for (const key of KEPT) model.on(`change:${key}`, take);
  return () => {
    const { mu, sigma } = state, { m, l } = factored(state.plane), [xx, xy, yy] = squared(l);
    const now = plane ? { mean: m, covariance: [[xx, xy], [xy, yy]] } : { mu, sigma };
    sending = true;
    for (const [key, value] of Object.entries(now)) model.set(key, value);
    model.save_changes();
    sending = false;
  };
}

const KEPT = ["mu", "sigma", "mean", "covariance"];
const LINES = ["optima", "strip", "move", ...DIRECTIONS];
const TOUCHED = { // boards that a change of each kind shows on
  target: LINES, view: [...LINES, "plane"], alpha: ["optima", "strip"], q: ["move", ...DIRECTIONS],
  way: DIRECTIONS, plane: ["plane"], "plane target": ["plane"], "way in the plane": ["plane"],
};

/** Compute what a change of some kind asks for. */
function follow(app, kind) {
  const { state, data } = app;
  if (kind === "target") {
    app.p = state.target === "own" ? table(data.line)
      : mixture(meansOf(state), weightsOf(state), state.width);
    app.best = optima(app.p);
    app.path = alphaPath(app.p, app.best);
    app.version++;
  }
  if (kind === "plane target") {
    app.p2 = state.plane.target === "own" ? grid(data.plane) : plane(state.plane.target);
  }
  if (!app.held) look(app);
  if (kind === "target" || kind === "q") app.read = measure(app.p, state), app.walk.reset();
  if (kind.startsWith("plane")) app.read2 = measurePlane(app.p2, state.plane), app.walk2.reset();
}

/** What is seen: p, and q wherever it is. */
function look(app) {
  const { mean: [mean], sd, starts } = app.p, { mu, plane: { m: [x, y] } } = app.state;
  const modes = starts.flatMap(([at, s]) => around(at, s, [4.5]));
  const edges = [mean - 3 * sd, mean + 3 * sd, mu, ...modes];
  const [x0, x1, y0, y1] = app.p2.box;
  app.span = [min(...edges), max(...edges)];
  app.box = [min(x0, x), max(x1, x), min(y0, y), max(y1, y)];
  app.narrow = min(sd, ...starts.map((s) => s[1]));
}

function render({ model, el }) {
  const app = { ...begin(model), shown: [], boards: [], version: 0, id: Math.random() };
  const { state } = app, send = bridge(app, model), root = h("div", { className: "vi-explorer" });
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  let waiting = 0;
  const share = () => {
    if (app.page && location.protocol !== "about:") {
      history.replaceState(null, "", `#${encoded(state)}`);
    }
    send();
  };
  app.walk = walker(app, "way", () => lifted(state), () => app.p);
  app.walk2 = walker(app, "way in the plane", () => factored(state.plane), () => app.p2);
  app.changed = (kind) => {
    follow(app, kind);
    for (const show of app.shown) show();
    for (const b of app.boards) if (TOUCHED[kind].includes(b.canvas.dataset.board)) b.paint();
    clearTimeout(waiting);
    waiting = setTimeout(share, 100);
  };
  const paint = () => {
    const style = getComputedStyle(root);
    app.colours = Object.fromEntries(COLOURS.map((name) =>
      [name, style.getPropertyValue(`--${name}`).trim()]));
    app.dark = isDark.matches;
    for (const b of app.boards) b.paint();
  };
  app.held = true; // there is nothing to look at yet
  follow(app, "target");
  app.held = null;
  follow(app, "plane target");
  const panels = [optimaPanel(app), movePanel(app), wayPanel(app), planePanel(app)];
  if (app.data?.plane) panels.unshift(panels.pop());
  root.append(...panels, sharePanel(app));
  el.append(root);
  for (const show of app.shown) show();
  const seen = new ResizeObserver(paint);
  seen.observe(root);
  isDark.addEventListener("change", paint);
  return () => {
    seen.disconnect();
    isDark.removeEventListener("change", paint);
    app.walk.stop();
    app.walk2.stop();
  };
}

export default { render };

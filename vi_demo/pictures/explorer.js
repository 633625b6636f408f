// The explorer: move a Gaussian q over a target p and watch what both directions of KL say.
//
// First the mathematics, then the page, which `render` mounts. It depends on nothing.
//
// p is always the target and q the guide; r = log p − log q. Every number comes from quadrature in
// log space, so nothing is lost where a density is tiny.

const { abs, atan2, ceil, cos, exp, floor, hypot, log, log1p, max, min, round, sign, sin,
  sqrt, LN2, PI } = Math;
const LOG_2PI = log(2 * PI);
const square = (x) => x * x;
const topOf = (sigma) => -0.5 * LOG_2PI - log(sigma); // log density of a Gaussian at its mean
const bounded = (x, low, high) => max(low, min(high, x));
const count = (n, fn) => Array.from({ length: n }, (_, k) => fn(k));

// Quadrature on a line: cells between cuts, a Gauss–Legendre rule in each.

/** Nodes and weights of the Gauss–Legendre rule of n points on [−1, 1]. */
function legendre(n) {
  const nodes = [], weights = [];
  for (let i = 0; i < n; i++) {
    let x = -cos((PI * (i + 0.75)) / (n + 0.5)), slope = 1;
    for (let step = 0; step < 20; step++) {
      let before = 1, here = x;
      for (let k = 2; k <= n; k++) {
        [before, here] = [here, ((2 * k - 1) * x * here - (k - 1) * before) / k];
      }
      slope = (n * (x * here - before)) / (x * x - 1);
      x -= here / slope;
    }
    nodes.push(x);
    weights.push(2 / ((1 - x * x) * slope * slope));
  }
  return [nodes, weights];
}

const FINE = legendre(10), COARSE = legendre(6); // the second for searches, which look often
const SDS = [0, 1.25, 2.5, 4, 6, 8, 10]; // cuts around a Gaussian: e^−50 of its peak at the last
const BENDS = [0, 3, 10, 30]; // cuts around a bend of a log density, in its own widths
const NOTHING = 45; // nats below a peak: what is there adds nothing
const HIDDEN = 8; // nats of other components above a bend that nobody can see

const around = (centre, width, steps) =>
  steps.flatMap((s) => (s ? [centre - s * width, centre + s * width] : [centre]));

/** Nodes x and weights w of a composite rule, the cells as the cuts say. */
function rule(cuts, [points, weights]) {
  const sorted = Float64Array.from(cuts).sort(), n = points.length;
  const x = new Float64Array((sorted.length - 1) * n), w = new Float64Array(x.length);
  let used = 0;
  for (let c = 1; c < sorted.length; c++) {
    const half = (sorted[c] - sorted[c - 1]) / 2, middle = (sorted[c] + sorted[c - 1]) / 2;
    if (!(half > 1e-13 * (abs(middle) + 1e-3))) continue;
    for (let i = 0; i < n; i++, used++) {
      x[used] = middle + half * points[i];
      w[used] = half * weights[i];
    }
  }
  return { x: x.subarray(0, used), w: w.subarray(0, used) };
}

function nodesOf(p, cuts, points = FINE) {
  const nodes = rule(cuts, points), lp = nodes.x.map((x) => p.logp(x));
  return { ...nodes, lp, p: lp.map(exp) };
}

/** Moments of p, normalised, from points [x, y, weight]; on a line y is 0. */
function normalised(p, points) {
  const raw = points.map(([x, y]) => p.logp(x, y)), mean = [0, 0], covariance = [0, 0, 0];
  const top = raw.reduce((a, b) => max(a, b));
  const mass = points.map((n, i) => n[2] * exp(raw[i] - top));
  const total = mass.reduce((a, b) => a + b), logZ = top + log(total);
  let entropy = 0;
  points.forEach(([x, y], i) => {
    mass[i] /= total;
    mean[0] += mass[i] * x;
    mean[1] += mass[i] * y;
    entropy -= mass[i] && mass[i] * (raw[i] - logZ);
  });
  points.forEach(([x, y], i) => {
    const [a, b] = [x - mean[0], y - mean[1]];
    [a * a, a * b, b * b].forEach((v, k) => (covariance[k] += mass[i] * v)); // xx, xy, yy
  });
  const nodes = points.map(([x, y], i) => [x, y, mass[i]]).filter((n) => n[2] > 1e-14);
  const logp = (x, y) => p.logp(x, y) - logZ;
  return { ...p, logp, peak: top - logZ, mean, covariance, entropy, nodes };
}

// Targets on a line.

/** Everything else that is known of a target, from its log density up to a constant. */
function finished(p) {
  const { x, w } = rule(p.cuts, FINE);
  const done = { ...normalised(p, count(x.length, (i) => [x[i], 0, w[i]])), line: true };
  done.sd = sqrt(done.covariance[0]);
  // Guides worth finding are no wider than this, and no narrower than p's own structure.
  done.fixed = nodesOf(done, [...p.cuts, ...around(done.mean[0], done.sd, SDS)], COARSE);
  const near = ({ m, l }) => nodesOf(done, [...p.cuts, ...around(m[0], l[0], SDS)]);
  done.overGuide = (q, fn) => {
    const { x, w } = near(q), logq = logOf({ mu: q.m[0], sigma: q.l[0] });
    x.forEach((at, i) => fn(at, 0, w[i] * exp(logq(at))));
  };
  return done;
}

/** Σ wₖ N(mₖ, s²): weights need not add up to one. */
export function mixture(means, weights, width) {
  const total = weights.reduce((a, b) => a + b);
  const kept = means.map((m, k) => [m, log(weights[k] / total)]).filter((c) => c[1] > -1e4);
  const n = kept.length, at = kept.map((c) => c[0]), logs = kept.map((c) => c[1]);
  const constant = topOf(width), heights = new Float64Array(n);
  const logp = (x) => {
    let top = -Infinity, sum = 0;
    for (let k = 0; k < n; k++) {
      heights[k] = logs[k] - 0.5 * square((x - at[k]) / width);
      if (heights[k] > top) top = heights[k];
    }
    for (let k = 0; k < n; k++) sum += exp(heights[k] - top);
    return constant + top + log(sum);
  };
  const cuts = evenly(at, width);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) cuts.push(...bend(at, logs, width, i, j, logp));
  }
  return finished({ logp, cuts, starts: at.map((m) => [m, width]) });
}

/** Even cuts wherever components are, none in the gaps between them. */
function evenly(centres, width) {
  const cuts = [], reach = SDS.at(-1) * width;
  let end = -Infinity;
  for (const m of [...centres].sort((a, b) => a - b)) {
    const begin = max(end, m - reach), n = ceil((m + reach - begin) / (SDS[1] * width));
    const step = (m + reach - begin) / n;
    for (let i = begin === end ? 1 : 0; i <= n; i++) cuts.push(begin + i * step);
    end = m + reach;
  }
  return cuts;
}

/** Cuts where one component takes over from another: log p bends there within s² / distance. */
function bend(at, logs, width, i, j, logp) {
  const apart = at[j] - at[i];
  if (abs(apart) < 2 * width) return []; // a bend so gentle that even cuts see it
  const x = (at[i] + at[j]) / 2 + (square(width) * (logs[i] - logs[j])) / apart;
  const height = logs[i] - 0.5 * square((x - at[i]) / width) + topOf(width);
  const hidden = logp(x) - height > HIDDEN || !Number.isFinite(x);
  return hidden ? [] : around(x, abs(square(width) / apart), BENDS);
}

/**
 * A log density at even steps, cubic between them. Tails are [slope, curvature] at both ends, and
 * searches start at its peaks, [place, sd].
 */
function table({ start, step, logp: values, tails, starts }) {
  const n = values.length, end = start + step * (n - 1);
  const beyond = (value, [slope, curvature], d) => value + slope * d + 0.5 * curvature * d * d;
  const logp = (x) => {
    if (x <= start) return beyond(values[0], tails[0], start - x);
    if (x >= end) return beyond(values[n - 1], tails[1], x - end);
    return looked(values, (x - start) / step);
  };
  const cuts = values.map((_, i) => start + i * step);
  const reach = (t) => (t[0] + sqrt(t[0] ** 2 - 2 * NOTHING * t[1])) / -t[1];
  for (let k = 1; k <= 8; k++) {
    cuts.push(start - (k / 8) * reach(tails[0]), end + (k / 8) * reach(tails[1]));
  }
  return finished({ logp, cuts, starts });
}

/** Values at even places, or `of` each of them, looked up at a place between: Catmull–Rom. */
function looked(values, place, of = (value) => value) {
  const last = values.length - 1, u = bounded(place, 0, last), i = min(last - 1, floor(u));
  const at = (k) => of(values[bounded(k, 0, last)]);
  const a = at(i - 1), b = at(i), c = at(i + 1), d = at(i + 2), t = u - i;
  return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
}

/** The same over a plane: rows of values at even places along both axes, from and by a step. */
const surface = (values, from, step) => (x, y) => looked(values, (x - from[0]) / step[0],
  (row) => looked(row, (y - from[1]) / step[1]));

// Divergences of q = N(μ, σ²), each a function of log p and log q at a node.

/** What a node adds to D, then the slopes of that by log q: once and twice. */
const TERMS = {
  reverse_kl(lp, lq, p, q, out) {
    out[0] = q * (lq - lp);
    out[1] = out[0] + q;
    out[2] = out[1] + q;
  },
  forward_kl(lp, lq, p, q, out) {
    out[0] = p * (lp - lq);
    out[1] = -p;
    out[2] = 0;
  },
  jensen_shannon(lp, lq, p, q, out) {
    const d = lp - lq, gentle = LN2 - log1p(exp(-abs(d)));
    const of_p = gentle + min(0, d), of_q = gentle - max(0, d); // log p/m, log q/m
    out[0] = 0.5 * (p * of_p + q * of_q);
    out[1] = 0.5 * q * of_q;
    out[2] = out[1] + (p + q > 0 ? (0.5 * q * p) / (p + q) : 0);
  },
  total_variation(lp, lq, p, q, out) {
    out[0] = 0.5 * abs(p - q);
  },
};

/** Amari's α-divergence (∫ pᵃ q¹⁻ᵃ − 1) / (a(a − 1)): KL(q‖p) at 0, KL(p‖q) at 1. */
function amari(a) {
  if (a <= 0) return TERMS.reverse_kl;
  if (a >= 1) return TERMS.forward_kl;
  return (lp, lq, p, q, out) => {
    const both = exp(a * lp + (1 - a) * lq);
    out[0] = (both - a * p - (1 - a) * q) / (a * (a - 1));
    out[1] = (q - both) / a;
    out[2] = (q - (1 - a) * both) / a;
  };
}

const OUT = [0, 0, 0];

/** D with its gradient and Hessian in (μ / σ, log σ), over given nodes of p. */
function slopes(term, nodes, { mu, sigma }) {
  const { x, w, lp, p } = nodes, constant = topOf(sigma);
  let value = 0, g0 = 0, g1 = 0, h00 = 0, h01 = 0, h11 = 0;
  for (let i = 0; i < x.length; i++) {
    const z = (x[i] - mu) / sigma, lq = constant - 0.5 * z * z;
    term(lp[i], lq, p[i], exp(lq), OUT);
    const first = w[i] * OUT[1], second = w[i] * OUT[2], s = z * z - 1;
    value += w[i] * OUT[0];
    g0 += first * z;
    g1 += first * s;
    h00 += second * z * z - first;
    h01 += second * z * s - 2 * first * z;
    h11 += second * s * s - 2 * first * z * z;
  }
  return { value, g: [g0, g1], h: [h00, h01, h11] };
}

function logOf({ mu, sigma }) {
  const constant = topOf(sigma);
  return (x) => constant - 0.5 * square((x - mu) / sigma);
}

/** Where p and q cross, which is where |p − q| has its kinks. */
function crossings(p, nodes, logq) {
  const { x, lp } = nodes, found = [], r = (at) => p.logp(at) - logq(at);
  let before = lp[0] - logq(x[0]);
  for (let i = 1; i < x.length; i++) {
    const lq = logq(x[i]), here = lp[i] - lq;
    if (here > 0 !== before > 0 && lq > p.peak - 2 * NOTHING) {
      found.push(root(r, x[i - 1], x[i], before, here));
    }
    before = here;
  }
  return found;
}

/** The root of r between two points where it has opposite signs (the Illinois rule). */
function root(r, low, high, at_low, at_high) {
  let x = low, side = 0;
  for (let k = 0; k < 80 && high - low > 1e-14 * abs(high); k++) {
    x = Number.isFinite(at_low + at_high) && k < 40
      ? (low * at_high - high * at_low) / (at_high - at_low) : (low + high) / 2;
    const here = r(x);
    if (!here) break;
    if (here > 0 === at_low > 0) {
      [low, at_low] = [x, here];
      if (side > 0) at_high /= 2;
      side = 1;
    } else {
      [high, at_high] = [x, here];
      if (side < 0) at_low /= 2;
      side = -1;
    }
    if (abs(here) < 1e-12) break;
  }
  return x;
}

/** Nodes for q, cut around q, around p's structure and wherever the two cross. */
function adapted(p, q) {
  const logq = logOf(q);
  const cuts = [...p.cuts, ...around(q.mu, q.sigma, SDS)];
  const nodes = nodesOf(p, cuts), roots = crossings(p, nodes, logq);
  if (!roots.length) return nodes;
  for (const x of roots) {
    cuts.push(...around(x, min(1 / steepness(p, logq, x, q.sigma), q.sigma), BENDS));
  }
  return nodesOf(p, cuts);
}

/** |r′| at a crossing: how fast p and q part there. */
function steepness(p, logq, x, sigma) {
  const h = 1e-5 * sigma, r = (at) => p.logp(at) - logq(at);
  return abs(r(x + h) - r(x - h)) / (2 * h);
}

/** KL(p‖q) from moments: −H(p) + log σ + ½ log 2π + ½ (v + (m − μ)²) / σ². */
const forwardKl = (p, { mu, sigma }) => -topOf(sigma) - p.entropy +
  (0.5 * (p.covariance[0] + square(p.mean[0] - mu))) / square(sigma);

/** All four readouts of one q, in nats but for the total variation. */
export function measure(p, q) {
  const nodes = adapted(p, q), { x, w, lp } = nodes, logq = logOf(q);
  const sums = { reverse_kl: 0, jensen_shannon: 0, total_variation: 0 };
  for (let i = 0; i < x.length; i++) {
    const lq = logq(x[i]);
    const a = nodes.p[i], b = exp(lq);
    for (const name in sums) {
      TERMS[name](lp[i], lq, a, b, OUT);
      sums[name] += w[i] * OUT[0];
    }
  }
  return { forward_kl: forwardKl(p, q), ...sums };
}

// Optima.

/**
 * The total variation with its slopes, which crossings alone decide: ∫ φ(z) zⁿ between two of them
 * is in closed form, and a crossing that moves adds to the Hessian. The value has kinks between
 * nodes, so searches go by slopes alone.
 */
function totalVariationSlopes(p, q) {
  const { x, w, lp, p: mass } = p.fixed, logq = logOf(q), g = [0, 0], h = [0, 0, 0];
  let value = 0, side = sign(logq(x[0]) - lp[0]);
  for (let i = 0; i < x.length; i++) {
    value += 0.5 * w[i] * abs(mass[i] - exp(logq(x[i])));
  }
  for (const at of crossings(p, p.fixed, logq)) {
    const z = (at - q.mu) / q.sigma, s = z * z - 1, height = exp(-0.5 * (LOG_2PI + z * z));
    const f = side * height, moves = height / (q.sigma * steepness(p, logq, at, q.sigma) + 1e-12);
    g[0] -= f;
    g[1] -= f * z;
    h[0] += moves * z * z - f * z;
    h[1] += moves * z * s - f * s;
    h[2] += moves * s * s - f * z * s;
    side = -side;
  }
  return { value, g, h };
}

/** Newton's step in (μ / σ, log σ), downhill along directions of negative curvature too. */
function newtonStep({ g, h }) {
  const middle = (h[0] + h[2]) / 2, apart = hypot((h[0] - h[2]) / 2, h[1]);
  const angle = 0.5 * atan2(2 * h[1], h[0] - h[2]), c = cos(angle), s = sin(angle);
  const floor = 1e-9 + 1e-7 * (abs(middle) + apart);
  const a = -(c * g[0] + s * g[1]) / max(abs(middle + apart), floor);
  const b = -(c * g[1] - s * g[0]) / max(abs(middle - apart), floor);
  const step = [c * a - s * b, s * a + c * b];
  const most = max(abs(step[0]) / 2, abs(step[1]), 1);
  return [step[0] / most, step[1] / most, middle - apart];
}

/** Damped Newton from q to the local optimum nearby; null where it ends anywhere else. */
function settled(fn, q, { most = 60, bySlope = false, stuck = null } = {}) {
  let here = fn(q), least = 0;
  for (let k = 0; k < most; k++) {
    const [u, v, curvature] = newtonStep(here);
    least = curvature;
    if (hypot(u, v) < 1e-8) break;
    let share = 1, next, there;
    for (; share > 1e-3; share /= 3) {
      next = { mu: q.mu + share * u * q.sigma, sigma: q.sigma * exp(share * v) };
      there = fn(next);
      const slope = u * here.g[0] + v * here.g[1];
      if (bySlope) {
        const ahead = (u * q.sigma * there.g[0]) / next.sigma + v * there.g[1];
        if (ahead <= -0.5 * slope) break;
      } else if (there.value <= here.value + 1e-4 * share * slope) break;
    }
    if (share <= 1e-3) break;
    [q, here] = [next, there];
  }
  const flat = hypot(...here.g) < 1e-6;
  if (!flat) stuck?.push({ ...q, value: here.value });
  return flat && least > 0 && Number.isFinite(here.value) ? { ...q, value: here.value } : null;
}

const same = (a, b, near = 1e-3) =>
  abs(a.mu - b.mu) < near * a.sigma && abs(log(a.sigma / b.sigma)) < near;

/** Guides that searches begin at: at each mode, over neighbours, and over all. */
function startsOf(p) {
  const ordered = [...p.starts].sort((a, b) => a[0] - b[0]);
  const pairs = ordered.slice(1).map(([m, s], k) => {
    const [n, t] = ordered[k];
    return [(m + n) / 2, (m - n) / 2 + (s + t) / 2];
  });
  return [...ordered, ...pairs, [p.mean[0], p.sd]].map(([mu, sigma]) => ({ mu, sigma }));
}

function distinct(found, near = 1e-3) {
  const kept = [];
  for (const q of found.filter(Boolean).sort((a, b) => a.value - b.value)) {
    if (!kept.some((k) => same(k, q, near))) kept.push(q);
  }
  return kept;
}

/** Local optima of the total variation; where a crossing comes or goes no slope leads to one. */
function bestVariations(p, starts) {
  const stuck = [], value = (q) => measure(p, q).total_variation;
  const exact = (q) => ({ ...q, value: value(q) });
  const fn = (q) => totalVariationSlopes(p, q);
  const found = starts.map((q) => settled(fn, q, { bySlope: true, stuck })).filter(Boolean);
  const kept = distinct(found.map(exact)), least = kept[0]?.value ?? Infinity;
  const lower = distinct(stuck, 0.2).filter((q) => q.value < least + 1e-3);
  const ends = lower.slice(0, 1).map((q) => simplex(value, q));
  // What a simplex ends at counts where it is the best, for it may have stopped half way.
  return distinct([...kept, ...ends.filter((q) => q.value < least)], 1e-2);
}

/** Nelder and Mead's search in (μ / σ, log σ) around q: slow, and sure where there are kinks. */
function simplex(fn, q, most = 90) {
  const at = (x) => ({ mu: q.mu + x[0] * q.sigma, sigma: q.sigma * exp(x[1]) });
  const point = (x) => ({ x, value: fn(at(x)) });
  const mix = (a, b, t) => a.map((v, i) => v + t * (b[i] - v));
  let points = [[0, 0], [0.15, 0], [0, 0.15]].map(point);
  for (let k = 0; k < most; k++) {
    points.sort((a, b) => a.value - b.value);
    const [best, good, worst] = points, middle = mix(best.x, good.x, 0.5);
    if (worst.value - best.value < 1e-10) break;
    let next = point(mix(worst.x, middle, 2));
    if (next.value < best.value) {
      const far = point(mix(worst.x, middle, 3));
      if (far.value < next.value) next = far;
    } else if (next.value >= good.value) {
      next = point(mix(next.value < worst.value ? next.x : worst.x, middle, 0.5));
    }
    if (next.value < worst.value) points[2] = next;
    else points = [best, ...[good, worst].map((p) => point(mix(p.x, best.x, 0.5)))];
  }
  return { ...at(points[0].x), value: points[0].value };
}

/** Every local optimum of each divergence, the best first. */
export function optima(p) {
  const starts = startsOf(p), term = (name) => (q) => slopes(TERMS[name], p.fixed, q);
  const all = (fn) => distinct(starts.map((q) => settled(fn, q)));
  // A mode that is met exactly is a plateau of the total variation: its optima are wider.
  const wider = starts.flatMap((q) => [1.5, 2.2].map((k) => ({ ...q, sigma: k * q.sigma })));
  const forward = { mu: p.mean[0], sigma: p.sd };
  return {
    forward_kl: [{ ...forward, value: forwardKl(p, forward) }],
    reverse_kl: all(term("reverse_kl")),
    jensen_shannon: all(term("jensen_shannon")),
    total_variation: bestVariations(p, [...starts, ...wider]),
  };
}

/**
 * Local optima followed along α from both ends, and where the best of them jumps.
 *
 * A branch ends where its optimum vanishes: the search then falls to another, far away.
 */
export function alphaPath(p, found, steps = 51) {
  const alphas = count(steps, (k) => k / (steps - 1)), branches = [];
  const follow = (start, order) => {
    const branch = Array(steps).fill(null);
    let last = start;
    for (const k of order) {
      const next = settled((q) => slopes(amari(alphas[k]), p.fixed, q), last, { most: 30 });
      const fell = next && k !== order[0] && !same(last, next, 0.35);
      if (!next || fell || branches.some((b) => b[k] && same(b[k], next, 1e-4))) break;
      last = branch[k] = next;
    }
    if (branch.some(Boolean)) branches.push(branch);
  };
  const up = alphas.map((_, k) => k);
  for (const q of found.reverse_kl) follow(q, up);
  for (const q of found.forward_kl) follow(q, [...up].reverse());
  return { alphas, branches, ...bestOf(alphas, branches) };
}

function bestOf(alphas, branches) {
  const at = (b, k) => branches[b][k]?.value ?? Infinity, best = [], jumps = [];
  for (let k = 0; k < alphas.length; k++) {
    let b = k ? best[k - 1] : 0;
    branches.forEach((_, c) => (b = at(c, k) < at(b, k) - 1e-9 ? c : b));
    best.push(b);
    if (!k || b === best[k - 1]) continue;
    const old = best[k - 1], from = branches[old][k - 1], to = branches[b][k];
    if (same(from, to, 0.35)) continue; // the same branch, handed over where two met
    const before = at(b, k - 1) - at(old, k - 1), after = at(old, k) - at(b, k);
    const share = Number.isFinite(before + after) ? before / (before + after) : 0.5;
    jumps.push(alphas[k - 1] + share * (alphas[k] - alphas[k - 1]));
  }
  return { best, jumps };
}

// Targets in the plane: the same, along one axis and then across it.

const OFFSETS = count(121, (i) => (i - 60) * 0.14); // sds: even steps suffice

/** A target's own nodes: cells along its outer axis, even steps across where its mass is there. */
function product(axis, cuts, inner) {
  const { x: t, w } = rule(cuts, FINE), points = [];
  t.forEach((outer, i) => {
    const [centre, width] = inner(outer);
    for (const u of OFFSETS) points.push([outer, centre + u * width, w[i] * 0.14 * width]);
  });
  return axis ? points.map(([a, b, w]) => [b, a, w]) : points;
}

/**
 * A density along an outer axis, and across it a Gaussian whose centre and width that place decides:
 * `along` says how finely p varies by it.
 */
function conditional({ axis = 0, cells, cuts = [], outer, inner, ...more }) {
  return {
    axis, cuts, ...more,
    across: (t) => inner(t)[1],
    logp(x, y) {
      const [t, u] = axis ? [y, x] : [x, y], [centre, width] = inner(t);
      return outer(t) - 0.5 * square((u - centre) / width) - log(width);
    },
    nodes: () => product(axis, [...cells, ...cuts], inner),
  };
}

/** Targets up to a constant, and the part of the plane to look at. */
const PLANE = {
  bimodal: conditional({
    box: [-9, 9, -5, 5], along: 1,
    cells: evenly([-4, 4], 1), cuts: around(0, 1 / 8, BENDS),
    outer: (x) => log1p(exp(-8 * abs(x))) - 0.5 * square(abs(x) - 4),
    inner: () => [0, 1],
  }),
  banana: conditional({
    box: [-4, 4, -5, 12], along: 0.25, cells: evenly([0], 1),
    outer: (x) => -0.5 * x * x,
    inner: (x) => [2 * (x * x - 1), 0.5],
  }),
  funnel: conditional({
    box: [-6, 6, -5, 5], along: 0.4, axis: 1, cells: evenly([0], 1.5),
    outer: (y) => -0.5 * square(y / 1.5),
    inner: (y) => [0, exp(bounded(y, -600, 600) / 2)], // which no rounding ends
  }),
  ring: {
    box: [-5.5, 5.5, -5, 5], along: 0.3, axis: 0, across: () => 0.4,
    logp: (x, y) => -0.5 * square((hypot(x, y) - 3) / 0.6),
    nodes: () => OFFSETS.flatMap((x) => OFFSETS.map((y) => [x, y, 0.14 ** 2])),
  },
};

/** A grid of log p, xs by ys, cubic between and falling like a Gaussian beyond. */
function grid({ x, y, logp: values, sd }) {
  const from = [x[0], y[0]], to = [x.at(-1), y.at(-1)], step = [x[1] - x[0], y[1] - y[0]];
  // As a Gaussian goes on from that edge: slope and curvature by the spread of p.
  const fall = (v, k) => {
    const d = max(from[k] - v, v - to[k], 0);
    return d && (d * (to[k] - from[k]) / 2 + 0.5 * d * d) / square(sd[k]);
  };
  const inside = surface(values, from, step);
  const logp = (u, v) => inside(u, v) - fall(u, 0) - fall(v, 1);
  const nodes = () => x.flatMap((u) => y.map((v) => [u, v, step[0] * step[1]]));
  const box = [from[0], to[0], from[1], to[1]];
  return plane({ box, axis: 0, along: 2 * step[0], across: () => 2 * step[1], logp, nodes });
}

/** Everything else that is known of a target in the plane. */
export function plane(source) {
  const p = typeof source === "string" ? PLANE[source] : source;
  const done = normalised(p, p.nodes());
  done.overGuide = (q, fn) => {
    const { cuts, walk } = linesOf(done, q), { x, w } = rule(cuts, FINE);
    x.forEach((t, i) => walk(t, w[i], fn));
  };
  return done;
}

/** Mean and Cholesky factor [l₁₁, l₂₁, l₂₂] of an ellipse of half axes s (sds) at an angle. */
export function factored({ m, s, angle }) {
  const c = cos(angle), n = sin(angle), [a, b] = s.map(square);
  const xx = c * c * a + n * n * b, xy = c * n * (a - b), yy = n * n * a + c * c * b;
  const first = sqrt(xx), low = xy / first;
  return { m: [...m], l: [first, low, sqrt(max(yy - low * low, 1e-300))] };
}

/** The ellipse of a covariance [xx, xy, yy]: half axes and the angle of the first. */
function ellipseOf(m, [xx, xy, yy]) {
  const middle = (xx + yy) / 2, apart = hypot((xx - yy) / 2, xy);
  const s = [middle + apart, max(middle - apart, 1e-300)].map(sqrt);
  return { m: [...m], s, angle: 0.5 * atan2(2 * xy, xx - yy) };
}

const squared = ([a, b, c]) => [a * a, a * b, b * b + c * c];

/** Where a place is to q: (x, y) = m + L (u, v). */
const white = ({ m, l }, x, y) => {
  const u = (x - m[0]) / l[0];
  return [u, (y - m[1] - l[1] * u) / l[2]];
};

function logOfPlane(q) {
  const constant = -LOG_2PI - log(q.l[0] * q.l[2]);
  return (x, y) => {
    const [u, v] = white(q, x, y);
    return constant - 0.5 * (u * u + v * v);
  };
}

/** Means under p of u, v, u², uv and v². */
function whiteMoments(p, q) {
  const { l } = q, [u, v] = white(q, ...p.mean), k = l[1] / l[0], [xx, xy, yy] = p.covariance;
  const a = xx / square(l[0]), b = (xy / l[0] - k * xx / l[0]) / l[2];
  const c = (yy - 2 * k * xy + k * k * xx) / square(l[2]);
  return [u, v, a + u * u, b + u * v, c + v * v];
}

/** Lines across q: cuts between them, and a walk at even steps along the one at t. */
function linesOf(p, { m, l }) {
  const [xx, xy, yy] = squared(l), swap = p.axis === 1, [a, b] = swap ? [m[1], m[0]] : m;
  const outer = sqrt(swap ? yy : xx), slope = xy / (swap ? yy : xx);
  const inner = sqrt((swap ? xx : yy) - slope * xy);
  const parts = bounded(ceil((0.6 * outer) / p.along), 1, 12);
  const ends = around(a, outer, SDS).sort((s, t) => s - t);
  const cuts = ends.slice(1).flatMap((end, i) =>
    count(parts, (k) => ends[i] + (k / parts) * (end - ends[i])));
  cuts.push(ends.at(-1), ...(p.cuts ?? []).filter((t) => abs(t - a) < 8 * outer));
  const walk = (t, w, fn) => {
    const z = (t - a) / outer, centre = b + slope * (t - a);
    const h = bounded(p.across(t) / inner / 2.5, 0.04, 0.3), n = ceil(sqrt(110 - z * z) / h);
    const share = (w * h) / (2 * PI * outer);
    for (let k = -n; k <= n; k++) {
      const u = k * h, v = centre + u * inner, weight = share * exp(-0.5 * (z * z + u * u));
      if (swap) fn(v, t, weight);
      else fn(t, v, weight);
    }
  };
  return { cuts, walk };
}

/** The sum over f where it is positive, at even steps, and how often it changes its sign. */
function positivePart(f) {
  let sum = 0, changes = 0;
  for (let k = 0; k < f.length; k++) {
    if (f[k] > 0) sum += f[k];
    if (!k || f[k] > 0 === f[k - 1] > 0) continue;
    if (abs(f[k] - f[k - 1]) > 1e-7) changes++;
    const near = [f[k - 2] ?? f[k - 1], f[k - 1], f[k], f[k + 1] ?? f[k]];
    sum += partStep(f[k] > 0 ? near.reverse() : near);
  }
  return [sum, changes];
}

/**
 * What a sum misses of the step in which f falls through zero, by the cubic through f around it:
 * Euler and Maclaurin's end of a sum at the step's beginning, and from there to the root.
 */
function partStep([before, f, next, after]) {
  const a = next - before / 3 - f / 2 - after / 6, b = (before + next) / 2 - f;
  const c = (after - before) / 6 + (f - next) / 2;
  let t = f / (f - next);
  for (let k = 0; k < 2; k++) {
    t = bounded(t - (f + t * (a + t * (b + t * c))) / (a + t * (2 * b + 3 * t * c)), 0, 1);
  }
  return t * (f + t * (a / 2 + t * (b / 3 + (t * c) / 4))) - f / 2 - a / 12 + c / 120;
}

/** All four readouts in the plane, over q alone: it goes to 1 or log 2 where p is elsewhere. */
export function measurePlane(p, ellipse) {
  const q = factored(ellipse), logq = logOfPlane(q), { cuts, walk } = linesOf(p, q);
  const sums = [0, 0, 0];
  const cell = (low, high, halvings) => {
    const { x, w } = rule([low, high], FINE), found = [0, 0, 0], seen = new Set();
    x.forEach((t, i) => {
      const gains = [];
      walk(t, w[i], (x, y, weight) => {
        const r = p.logp(x, y) - logq(x, y), small = exp(-abs(r)), l = log1p(small);
        // log 2 − ½ (eʳ log(1 + e⁻ʳ) + log(1 + eʳ)), without overflow
        const ratio = r > 0 ? 1 / max(small, 1e-20) : small;
        const both = r > 0 ? (small > 1e-12 ? l / small : 1) + r + l : small * (l - r) + l;
        found[0] -= weight * r;
        found[1] += weight * (LN2 - 0.5 * both);
        gains.push(weight * (1 - ratio));
      });
      const [sum, changes] = positivePart(gains);
      found[2] += sum;
      seen.add(changes);
    });
    // Where a line begins to cross, its sum bends.
    const middle = (low + high) / 2, halved = seen.size > 1 && halvings;
    if (halved) for (const ends of [[low, middle], [middle, high]]) cell(...ends, halvings - 1);
    else found.forEach((v, k) => (sums[k] += v));
  };
  cuts.sort((s, t) => s - t).slice(1).forEach((high, i) => cell(cuts[i], high, 1));
  const [reverse_kl, jensen_shannon, total_variation] = sums, [, , uu, , vv] = whiteMoments(p, q);
  const forward_kl = LOG_2PI + log(q.l[0] * q.l[2]) - p.entropy + 0.5 * (uu + vv);
  return { forward_kl, reverse_kl, jensen_shannon, total_variation };
}

// Ways down: gradients of both directions of KL. A line is a plane whose other axis plays no part.

export const lifted = ({ mu, sigma }) => ({ m: [mu, 0], l: [sigma, 0, 1] });

/** Repeatable random numbers: a function for uniform ones, and one for Gaussian ones. */
export function random(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => sqrt(-2 * log(1 - uniform())) * cos(2 * PI * uniform());
  return { uniform, normal };
}

function drawn(p, uniform) {
  if (!p.cumulative) {
    let sum = 0;
    p.cumulative = p.nodes.map((n) => (sum += n[2]));
  }
  const c = p.cumulative, at = uniform() * c.at(-1);
  let low = 0, high = c.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (c[middle] < at) low = middle + 1;
    else high = middle;
  }
  return p.nodes[low];
}

/** The gradient of a KL where q is standard: by the mean, and (11, 21, 22) by the factor. */
export function gradient(p, q, direction, { draws, rng }) {
  const { m, l } = q, sum = [0, 0, 1, 0, 1];
  if (direction === "forward_kl" && !draws) return whiteMoments(p, q).map((v, k) => sum[k] - v);
  const add = (w, [u, v], a, b) => [a, b, a * u, b * u, b * v].forEach((g, k) => (sum[k] -= w * g));
  if (direction === "forward_kl") {
    for (let k = 0; k < draws; k++) {
      const z = white(q, ...drawn(p, rng.uniform));
      add(1 / draws, z, ...z); // minus the score of q
    }
    return sum;
  }
  sum[2] = sum[4] = -1;
  if (!draws) {
    p.overGuide(q, (x, y, weight) => {
      const [u, v] = white(q, x, y), w = weight * p.logp(x, y);
      [u, v, u * u - 1, u * v, v * v - 1].forEach((g, k) => (sum[k] -= w * g));
    });
  }
  for (let k = 0; k < draws; k++) { // through the draws
    const [u, v] = [rng.normal(), rng.normal()], h = 1e-4 * min(l[0], l[2]);
    const x = m[0] + l[0] * u, y = m[1] + l[1] * u + l[2] * v;
    const dx = (p.logp(x + h, y) - p.logp(x - h, y)) / (2 * h);
    const dy = (p.logp(x, y + h) - p.logp(x, y - h)) / (2 * h);
    add(1 / draws, [u, v], l[0] * dx + l[1] * dy, l[2] * dy);
  }
  return sum;
}

/** One step down; no longer than 3 sds in μ and 1 in log σ, lest a steep wall throws q away. */
export function descend(p, q, direction, how) {
  const { m, l } = q, { rate, natural } = how, [g0, g1, a, b, c] = gradient(p, q, direction, how);
  // Plain: by μ it is L⁻ᵀ g, and by log l₁₁, l₂₁, log l₂₂ the lower half of L⁻ᵀ G.
  const v = g1 / l[2], u = (g0 - l[1] * v) / l[0];
  const dm = natural ? [l[0] * g0, l[1] * g0 + l[2] * g1] : [u, v];
  const dl = natural ? [a / 2, l[2] * b, c / 2] : [a - (l[1] * b) / l[2], b / l[2], c];
  const sds = [l[0], hypot(l[1], l[2])], step = (g, most) => bounded(rate * g, -most, most);
  return {
    m: m.map((x, k) => x - step(dm[k], 3 * sds[k])),
    l: p.line ? [l[0] * exp(-step(dl[0], 1)), ...l.slice(1)]
      : [l[0] * exp(-step(dl[0], 1)), l[1] - step(dl[1], sds[1]), l[2] * exp(-step(dl[2], 1))],
  };
}

// The page: one state, controls of explorer_panels.html that show and set it, boards that draw it.

const LOOKS = { // colour and dash
  forward_kl: ["forward", []], reverse_kl: ["reverse", [7, 3]],
  jensen_shannon: ["js", [9, 3, 2, 3]], total_variation: ["tv", [2, 3]],
};
const COLOURS = ["page", "ink", "quiet", "rule", "target", "forward", "reverse", "js", "tv"];
const DIRECTIONS = ["forward_kl", "reverse_kl"];
const KEPT = ["mu", "sigma", "mean", "covariance"]; // what Python holds

const short = (x) =>
  (Number.isFinite(x) ? String(Number(x.toPrecision(4))) : "∞").replace("-", "−");

const h = (tag, properties) => Object.assign(document.createElement(tag), properties);

// Controls.

/** Let a control show what it stands for in the state, a path such as plane.m.0, and set it. */
function bind(app, input) {
  const { key, kind } = input.dataset, { type } = input, keys = key.split("."), last = keys.pop();
  const holder = () => keys.reduce((object, k) => object[k], app.state);
  const value = () => {
    if (type === "checkbox") return input.checked;
    return type === "select-one" && isNaN(input.value) ? input.value : Number(input.value);
  };
  input.addEventListener("input", () => {
    input.setAttribute("aria-invalid", !input.validity.valid);
    if (!input.validity.valid) return;
    holder()[last] = value();
    app.changed(kind);
  });
  app.shown.push(() => {
    const now = holder()[last], out = input.nextElementSibling;
    input.parentElement.hidden = now === undefined; // a mode that is not there
    if (type === "checkbox") input.checked = now;
    else if (type !== "number" || document.activeElement !== input) input.value = now ?? "";
    if (out) out.value = short(now);
  });
}

/** What is right of a prompt's two guesses, and why. */
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

const ACTIONS = {
  play: (app, { kind }) => app.walks[kind].play(),
  step: (app, { kind }) => app.walks[kind].step(),
  reset: (app, { kind }) => app.changed(kind),
  fit(app, { name }) {
    const fit = app.data.fits[name];
    if (fit.mean.length > 1) setQ(app, planeOf(fit), "plane");
    else setQ(app, lineOf(fit));
  },
  link: (app) => copy(app, `${location.href.split("#")[0]}#${encoded(app.state)}`),
  python: (app, { dim }) => copy(app, python(app, dim === "1")),
  png: (app) => download("explorer.png", sheetOf(app)),
  json(app) {
    const { state, read, best, path, read2 } = app;
    const all = { state, divergences: read, optima: best, jumps: path.jumps, plane: read2 };
    const text = encodeURIComponent(JSON.stringify(all, null, 2));
    download("explorer.json", `data:application/json,${text}`);
  },
};

/** Give life to all that is marked in the panels. */
function furnish(app) {
  const all = (mark, fn) => {
    for (const e of app.root.querySelectorAll(`[data-${mark}]`)) fn(e, e.dataset[mark]);
  };
  all("key", (input) => bind(app, input));
  all("of", (e, target) => app.shown.push(() => (e.hidden = app.state.target !== target)));
  all("do", (button, name) => (button.onclick = () => ACTIONS[name](app, button.dataset)));
  all("reading", (out, path) => {
    const [which, name] = path.split(".");
    app.shown.push(() => (out.value = short(app[which][name])));
  });
  all("ask", (box, name) => box.addEventListener("input", ({ target }) => {
    const [right, why] = ANSWERS[name](app);
    box.querySelector("output").value = `${right === Number(target.value) ? "Yes." : "No."} ${why}`;
  }));
}

/** Put q somewhere: μ and σ on the line, or an ellipse in the plane. */
function setQ(app, q, kind = "q") {
  Object.assign(kind === "q" ? app.state : app.state.plane, q);
  app.changed(kind);
}

// Boards.

/**
 * A canvas with axes. Where a pointer takes hold, `grab` says what its moves do, in the units of
 * the axes; `follow` is for boards on which the pointer's place is all that matters.
 */
function board(app, name, { view, draw, follow, grab, key }) {
  const canvas = app.root.querySelector(`[data-board=${name}]`);
  const b = { canvas, c: canvas.getContext("2d") };
  b.paint = () => {
    const { clientWidth: width, clientHeight: height } = canvas, now = view();
    if (!width) return;
    canvas.dataset.view = now;
    const ratio = globalThis.devicePixelRatio || 1, [x0, x1, y0, y1] = now;
    const size = [round(width * ratio), round(height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    Object.assign(b, {
      width, height, view: now, colours: app.colours,
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
}

/** A pointer takes hold, moves, and lets go. */
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

function axis(b, title) {
  const [lo, hi] = b.view, step = 10 ** floor(Math.log10((hi - lo) / 3));
  const every = (hi - lo) / step > 12 ? 5 * step : (hi - lo) / step > 6 ? 2 * step : step;
  for (let x = ceil(lo / every) * every; x < hi; x += every) {
    const u = b.X(x), inside = u > 12 && u < b.width - 30;
    if (inside) words(b, short(round(x / every) * every), u, b.height - 4, "center");
  }
  words(b, title, b.width - 4, b.height - 4, "right");
}

/** Shades of a colour, kept until what they show changes. */
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

/** Two ways down from one q; `kind` is that of changes to it. */
function walker(app, kind, start, target) {
  const w = { timer: 0 }, changed = () => app.changed(`way-${kind}`);
  const play = app.root.querySelector(`[data-do=play][data-kind=${kind}]`);
  const still = () => {
    cancelAnimationFrame(w.timer);
    w.timer = 0;
  };
  w.reset = () => {
    still();
    w.rng = random(1);
    w.paths = Object.fromEntries(DIRECTIONS.map((name) => [name, [start()]]));
  };
  w.step = (times = 1) => {
    const how = { ...app.state.way, rng: w.rng };
    for (let k = 0; k < times; k++) {
      for (const name of DIRECTIONS) {
        w.paths[name].push(descend(target(), w.paths[name].at(-1), name, how));
      }
    }
    changed();
  };
  w.stop = () => (still(), changed());
  const frame = () => {
    w.timer = requestAnimationFrame(frame);
    w.step();
    if (w.paths.forward_kl.length > 400) w.stop();
  };
  w.play = () => {
    if (w.timer) return w.stop();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return w.step(200);
    w.timer = requestAnimationFrame(frame);
    changed();
  };
  app.shown.push(() => {
    play.textContent = w.timer ? "Pause" : "Play";
    play.parentElement.lastElementChild.textContent = `${w.paths.forward_kl.length - 1} steps`;
  });
  return w;
}

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

function optimaBoards(app) {
  const { state } = app, shown = () => Object.keys(LOOKS).filter((name) => state.shown[name]);
  const at = () => round(state.alpha * (app.path.alphas.length - 1));
  const now = () => app.path.branches[app.path.best[at()]][at()];
  const tops = () => heightOf(app, [...shown().map((n) => app.best[n][0]), now()].filter(Boolean));
  const slide = (alpha) => {
    state.alpha = bounded(alpha, 0, 1);
    app.changed("alpha");
  };
  const key = ({ dx }) => slide(state.alpha + dx / 50);
  board(app, "optima", {
    key,
    view: () => [...app.span, -0.16 * tops(), tops()],
    draw(b) {
      targetLine(b, app);
      stroke(b, curve(b, now()), b.colours.ink, [1, 3], 2.5);
      shown().forEach((name, row) => {
        const [mark, dash] = LOOKS[name], colour = b.colours[mark];
        app.best[name].forEach((q, k) => {
          stroke(b, curve(b, q), colour, k ? [1, 3] : dash, k ? 1 : 2);
          dot(b, b.X(q.mu), b.Y(0) + 6 + 4 * row, 3, k ? b.colours.page : colour, colour);
        });
      });
    },
  });
  board(app, "strip", {
    key, follow: slide, view: () => [-0.03, 1.03, ...app.span],
    draw: (b) => drawStrip(b, app.path, state.alpha),
  });
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

const evenMeans = ({ modes, spread }) => count(modes, (k) => spread * (k - (modes - 1) / 2));

const weightsOf = ({ modes, decay }) => {
  const weights = count(modes, (k) => decay ** k), total = weights.reduce((a, b) => a + b);
  return weights.map((w) => w / total);
};

const nudge = (app) => ({ dx, dy, grow }) => {
  const { mu, sigma } = app.state, [lo, hi] = app.span;
  setQ(app, { mu: mu + (dx * (hi - lo)) / 200, sigma: sigma * 1.02 ** (dy + grow) });
};

/** What a drag does there: to a mode, a side of q, or all of it. */
function grabLine(app, x, y, b, at) {
  const { mu, sigma, means, target } = app.state, v = b.Y(y);
  const k = target === "mixture" && v > b.Y(0) - 4 ? means.findIndex((m) => at(b.X(m), v)) : -1;
  if (k >= 0) return (to) => ((means[k] = to), app.changed("target"));
  const away = abs(x - mu) / sigma;
  if (away > 0.7 && away < 3) {
    return (to) => setQ(app, { sigma: max(abs(to - mu) / away, 1e-3) });
  }
  return (to) => setQ(app, { mu: mu + to - x });
}

function moveBoard(app) {
  const { state, data } = app, top = () => heightOf(app, [state]);
  board(app, "move", {
    view: () => [...app.span, -0.14 * top(), top()],
    grab: (...at) => grabLine(app, ...at), key: nudge(app),
    draw(b) {
      const p = targetLine(b, app), q = curve(b, state), { colours: of } = b;
      between(b, p, q, of.forward, 0.3);
      between(b, q, p, of.reverse, 0.3);
      for (const [name, fit] of Object.entries(state.target === "own" ? data.fits : {})) {
        const [colour, dash] = LOOKS[name] ?? ["quiet", [2, 4]];
        stroke(b, curve(b, lineOf(fit)), of[colour], dash, 1);
      }
      stroke(b, q, of.ink, [], 2.5);
      words(b, "p > q: forward KL pays", b.width - 8, 16, "right", "forward");
      words(b, "q > p: reverse KL pays", b.width - 8, 32, "right", "reverse");
      if (state.target !== "mixture") return;
      for (const m of state.means) dot(b, b.X(m), b.Y(0) + 8, 6, of.target, of.page);
    },
  });
}

/** KL over (μ, log σ) on a coarse grid, looked up between its points. */
function landscape(p, name, [x0, x1, y0, y1]) {
  const [nx, ny] = [49, 33], step = [(x1 - x0) / (nx - 1), (y1 - y0) / (ny - 1)];
  const z = count(31, (k) => (k - 15) / 3);
  const masses = z.map((u) => exp(-0.5 * u * u) / (3 * sqrt(2 * PI)));
  const value = (mu, sigma) => name === "forward_kl" ? forwardKl(p, { mu, sigma })
    : z.reduce((sum, u, k) => sum - masses[k] * p.logp(mu + sigma * u),
      topOf(sigma) - 0.5);
  const column = (mu) => count(ny, (j) => value(mu, exp(y0 + j * step[1])));
  return surface(count(nx, (i) => column(x0 + i * step[0])), [x0, y0], step);
}

function wayBoards(app) {
  const { state } = app;
  const view = () => [...app.span, log(0.5 * app.narrow), log(2.5 * app.p.sd)];
  for (const name of DIRECTIONS) {
    const [colour] = LOOKS[name];
    board(app, name, {
      view, key: nudge(app), follow: (x, y) => setQ(app, { mu: x, sigma: exp(y) }),
      draw(b) {
        const { [colour]: shade, ink, page } = b.colours, path = app.walks.q.paths[name];
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
        words(b, `${colour} KL`, 8, 16, "left", "ink");
        words(b, "log σ ↑", 8, 32);
        axis(b, "μ");
      },
    });
  }
}

// The plane.

/** The place on an ellipse of 2 sds at an angle from its first axis. */
const onEllipse = ({ m, s, angle }, turn) => {
  const a = 2 * s[0] * cos(turn), e = 2 * s[1] * sin(turn), c = cos(angle), n = sin(angle);
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
  const put = (change) => setQ(app, change, "plane");
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
  backdrop(b, app, q.target, b.colours.target, () => {
    const levels = [0.1, 0.5, 1.2, 2.3, 4.6, 7];
    return (x, y) => 0.11 * levels.filter((d) => p2.peak - p2.logp(x, y) < d).length;
  });
  for (const name of DIRECTIONS) {
    const [colour, dash] = LOOKS[name], path = app.walks.plane.paths[name];
    const { m, l } = path.at(-1);
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

function planeBoard(app) {
  board(app, "plane", {
    view: () => app.box, grab: (...at) => grabPlane(app, ...at), draw: (b) => drawPlane(b, app),
    key({ dx, dy, grow, turn }) {
      const { m, s, angle } = app.state.plane, [x0, x1, y0, y1] = app.box;
      setQ(app, { m: [m[0] + (dx * (x1 - x0)) / 200, m[1] + (dy * (y1 - y0)) / 200],
        s: s.map((v) => v * 1.03 ** grow), angle: angle + 0.05 * turn }, "plane");
    },
  });
}

// Around the panels: links, files, Python.

/** A script with vi_demo that prints the numbers shown: one of explorer.py's, its holes filled. */
function python({ scripts, state, data }, flat) {
  const { plane: q, mu, sigma, width, means } = state, [xx, xy, yy] = squared(factored(q).l);
  const values = {
    mu, sigma, width, means, weights: weightsOf(state), mean: flat ? [mu] : q.m,
    covariance: flat ? [[sigma ** 2]] : [[xx, xy], [xy, yy]],
    folder: data?.folder, sites: data?.sites,
  };
  return scripts[flat ? state.target : q.target].replace(/<(\w+)>/g,
    (_, name) => JSON.stringify(values[name]));
}

const download = (name, href) => h("a", { href, download: name }).click();

function copy(app, value) {
  const text = Object.assign(app.root.querySelector("textarea"), { value, hidden: false });
  text.select(); // for the keyboard, where there is no clipboard
  navigator.clipboard?.writeText(value).catch(() => {});
}

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

/** The state as text that JSON reads back to the last digit. */
const encoded = (state) => encodeURIComponent(JSON.stringify(state));

/** The state that a link holds, or else `start`. */
function decoded(hash, start, data) {
  try {
    const given = JSON.parse(decodeURIComponent(hash.slice(1))), state = { ...start, ...given };
    for (const key of ["shown", "way", "plane"]) state[key] = { ...start[key], ...given[key] };
    if (sound(state, data)) return state;
  } catch {} // what it is not is told by where it begins
  return start;
}

function sound({ plane: q, way, means, target, modes, alpha, ...state }, data) {
  const { mu, sigma, spread, decay, width } = state;
  return [mu, spread, q.angle, ...q.m, ...(means ?? [])].every(Number.isFinite) &&
    [sigma, decay, width, way.rate, ...q.s].every((x) => x > 0 && x < Infinity) &&
    [2, 3, 4, 5].includes(modes) && (!means || means.length === modes) &&
    alpha >= 0 && alpha <= 1 &&
    [0, 1, 10, 100].includes(way.draws) && q.m.length === 2 && q.s.length === 2 &&
    (target === "mixture" || (target === "own" && data?.line)) &&
    (Object.hasOwn(PLANE, q.target) || (q.target === "own" && data?.plane));
}

function begin(model) {
  const data = model.get("data") ?? null, page = Boolean(model.get("page"));
  const { panels, scripts, state } = model.get("text"), start = structuredClone(state);
  const root = h("form", { className: "vi-explorer", innerHTML: panels }); // which keeps its guesses
  const app = { data, page, root, scripts, state: start };
  if (page) app.state = decoded(location.hash, start, data);
  else receive(app, model);
  app.state.means ??= evenMeans(app.state);
  return app;
}

/** Put q where Python holds it. */
function receive({ data, state }, model) {
  const [mu, sigma, mean, covariance] = KEPT.map((key) => model.get(key));
  if (data?.plane) Object.assign(state.plane, planeOf({ mean, covariance }));
  else Object.assign(state, { mu, sigma });
}

/** Keep what Python holds of q and what is drawn the same, whoever moves it. */
function bridge(app, model) {
  const { state } = app, plane = Boolean(app.data?.plane);
  let sending = false;
  const take = () => {
    if (sending) return;
    receive(app, model);
    app.changed(plane ? "plane" : "q");
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

function follow(app, kind) {
  const { state, data, walks } = app, anew = kind === "target" || kind === "shape";
  if (kind === "shape") state.means = evenMeans(state);
  if (anew) {
    app.p = state.target === "own" ? table(data.line)
      : mixture(state.means, weightsOf(state), state.width);
    app.best = optima(app.p);
    app.path = alphaPath(app.p, app.best);
    app.version++;
  }
  if (kind === "plane-target") {
    app.p2 = state.plane.target === "own" ? grid(data.plane) : plane(state.plane.target);
  }
  if (!app.held) look(app);
  if (anew || kind === "q") app.read = measure(app.p, state), walks.q.reset();
  if (kind.startsWith("plane")) app.read2 = measurePlane(app.p2, state.plane), walks.plane.reset();
}

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
  const app = { ...begin(model), shown: [], boards: [], version: 0 }, { state, root } = app;
  const send = bridge(app, model), isDark = matchMedia("(prefers-color-scheme: dark)");
  let waiting = 0;
  const share = () => {
    if (app.page && location.protocol !== "about:") {
      history.replaceState(null, "", `#${encoded(state)}`);
    }
    send();
  };
  app.changed = (kind) => {
    follow(app, kind);
    for (const show of app.shown) show();
    for (const b of app.boards) if (b.canvas.dataset.kinds.split(" ").includes(kind)) b.paint();
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
  app.walks = {
    q: walker(app, "q", () => lifted(state), () => app.p),
    plane: walker(app, "plane", () => factored(state.plane), () => app.p2),
  };
  app.held = true; // there is nothing to look at yet
  follow(app, "target");
  app.held = null;
  follow(app, "plane-target");
  for (const boards of [optimaBoards, moveBoard, wayBoards, planeBoard]) boards(app);
  furnish(app);
  el.append(root);
  for (const show of app.shown) show();
  const seen = new ResizeObserver(paint);
  seen.observe(root);
  isDark.addEventListener("change", paint);
  return () => {
    seen.disconnect();
    isDark.removeEventListener("change", paint);
    for (const walk of Object.values(app.walks)) walk.stop();
  };
}

export default { render };

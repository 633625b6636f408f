// The explorer's mathematics: targets on a line and in the plane, divergences of a Gaussian from
// them, their optima, and ways down.
//
// p is always the target and q the guide; r = log p − log q. Every number comes from quadrature in
// log space, so nothing is lost where a density is tiny.

export const { abs, atan2, ceil, cos, exp, floor, hypot, log, log1p, max, min, round, sign, sin,
  sqrt, LN2, PI } = Math;
export const LOG_2PI = log(2 * PI);
const square = (x) => x * x;
export const bounded = (x, low, high) => max(low, min(high, x));
export const count = (n, fn) => Array.from({ length: n }, (_, k) => fn(k));

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

export const around = (centre, width, steps) =>
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

/** The nodes of p: its log density is looked up once. */
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
  const constant = -0.5 * LOG_2PI - log(width), heights = new Float64Array(n);
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
  const height = logs[i] - 0.5 * square((x - at[i]) / width) - 0.5 * LOG_2PI - log(width);
  const hidden = logp(x) - height > HIDDEN || !Number.isFinite(x);
  return hidden ? [] : around(x, abs(square(width) / apart), BENDS);
}

/** A log density at even steps, cubic between them; tails are [slope, curvature] at both ends. */
export function table({ start, step, logp: values, tails }) {
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
  const peaks = cuts.slice(0, n).filter((_, i) => values[i - 1] < values[i] &&
    values[i] >= values[i + 1]);
  const starts = peaks.slice(0, 8).map((x) => [x, peakWidth(logp, x, (end - start) / 400)]);
  return finished({ logp, cuts, starts });
}

/** Values at even places, or `of` each of them, looked up at a place between: Catmull–Rom. */
export function looked(values, place, of = (value) => value) {
  const last = values.length - 1, u = bounded(place, 0, last), i = min(last - 1, floor(u));
  const at = (k) => of(values[bounded(k, 0, last)]);
  const a = at(i - 1), b = at(i), c = at(i + 1), d = at(i + 2), t = u - i;
  return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
}

/** The sd of a Gaussian with the curvature that a log density has at a peak. */
function peakWidth(logp, x, h) {
  const curvature = (2 * logp(x) - logp(x - h) - logp(x + h)) / h ** 2;
  return curvature > 0 ? 1 / sqrt(curvature) : 4 * h;
}

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
  const { x, w, lp, p } = nodes, constant = -0.5 * LOG_2PI - log(sigma);
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

/** Log q of a Gaussian, a function of x. */
export function logOf({ mu, sigma }) {
  const constant = -0.5 * LOG_2PI - log(sigma);
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
export const forwardKl = (p, { mu, sigma }) => 0.5 * LOG_2PI + log(sigma) - p.entropy +
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
function product(p, cuts, inner) {
  const { x: t, w } = rule(cuts, FINE), points = [];
  t.forEach((outer, i) => {
    const [centre, width] = inner(outer);
    for (const u of OFFSETS) points.push([outer, centre + u * width, w[i] * 0.14 * width]);
  });
  return p.axis ? points.map(([a, b, w]) => [b, a, w]) : points;
}

/** Nodes of a ring: cells along its radius, even steps around. */
function polar(radius, width) {
  const reach = around(radius, width, SDS).filter((r) => r > 0), n = 96;
  const { x, w } = rule([0, ...reach], FINE);
  return Array.from(x).flatMap((r, i) => count(n, (k) => {
    const angle = (2 * PI * k) / n;
    return [r * cos(angle), r * sin(angle), (w[i] * r * 2 * PI) / n];
  }));
}

/**
 * Log density up to a constant, what to look at, and where its structure is: `axis` is the outer
 * one, `along` how finely p varies by it, and `across` how finely the other way from there.
 */
export const PLANE = {
  bimodal: {
    label: "bimodal",
    box: [-9, 9, -5, 5],
    axis: 0,
    cuts: around(0, 1 / 8, BENDS),
    along: 1,
    across: () => 1,
    logp: (x, y) => log(exp(-8 * abs(x)) + 1) - 0.5 * (square(abs(x) - 4) + y * y),
    nodes: (p) => product(p, [...evenly([-4, 4], 1), ...p.cuts], () => [0, 1]),
  },
  banana: {
    label: "banana",
    box: [-4, 4, -5, 12],
    axis: 0,
    along: 0.25,
    across: () => 0.5,
    logp: (x, y) => -0.5 * (x * x + square((y - 2 * (x * x - 1)) / 0.5)),
    nodes: (p) => product(p, evenly([0], 1), (x) => [2 * (x * x - 1), 0.5]),
  },
  funnel: {
    label: "funnel",
    box: [-6, 6, -5, 5],
    axis: 1,
    along: 0.4,
    across: (y) => exp(y / 2),
    logp: (x, y) => -0.5 * (square(y / 1.5) + x * x * exp(-y) + y),
    nodes: (p) => product(p, evenly([0], 1.5), (y) => [0, exp(y / 2)]),
  },
  ring: {
    label: "ring",
    box: [-5.5, 5.5, -5, 5],
    axis: 0,
    along: 0.3,
    across: () => 0.4,
    constant: 3.3446022752084676, // log of its mass
    logp: (x, y) => -0.5 * square((hypot(x, y) - 3) / 0.6),
    nodes: () => polar(3, 0.6),
  },
};

/** A grid of log p, xs by ys, cubic between and falling like a Gaussian beyond. */
export function grid({ label, x, y, logp: values, sd }) {
  const from = [x[0], y[0]], to = [x.at(-1), y.at(-1)], step = [x[1] - x[0], y[1] - y[0]];
  // As a Gaussian goes on from that edge: slope and curvature by the spread of p.
  const fall = (v, k) => {
    const d = max(from[k] - v, v - to[k], 0);
    return d && (d * (to[k] - from[k]) / 2 + 0.5 * d * d) / square(sd[k]);
  };
  const logp = (u, v) => {
    const across = (row) => looked(row, (v - from[1]) / step[1]);
    return looked(values, (u - from[0]) / step[0], across) - fall(u, 0) - fall(v, 1);
  };
  const nodes = () => x.flatMap((u) => y.map((v) => [u, v, step[0] * step[1]]));
  const box = [from[0], to[0], from[1], to[1]];
  return plane({ label, box, axis: 0, along: 2 * step[0], across: () => 2 * step[1], logp, nodes });
}

/** Everything else that is known of a target in the plane. */
export function plane(source) {
  const p = typeof source === "string" ? { name: source, ...PLANE[source] } : source;
  const done = normalised(p, p.nodes(p));
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
export function ellipseOf(m, [xx, xy, yy]) {
  const middle = (xx + yy) / 2, apart = hypot((xx - yy) / 2, xy);
  const s = [middle + apart, max(middle - apart, 1e-300)].map(sqrt);
  return { m: [...m], s, angle: 0.5 * atan2(2 * xy, xx - yy) };
}

export const squared = ([a, b, c]) => [a * a, a * b, b * b + c * c];

/** Where a place is to q: (x, y) = m + L (u, v). */
const white = ({ m, l }, x, y) => {
  const u = (x - m[0]) / l[0];
  return [u, (y - m[1] - l[1] * u) / l[2]];
};

/** Log q of a Gaussian in the plane, a function of x and y. */
function logOfPlane(q) {
  const { m, l } = q, constant = -LOG_2PI - log(l[0] * l[2]);
  return (x, y) => {
    const u = (x - m[0]) / l[0], v = (y - m[1] - l[1] * u) / l[2];
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

/** A node of p, drawn by its mass. */
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

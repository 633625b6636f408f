// The explorer: move a Gaussian q over a target p and watch what both directions of KL say.
//
// One module without dependencies: a widget mounts it through `render`, and `explorer.py` inlines
// it in a page of its own. p is always the target and q the guide; r = log p − log q. Every number
// comes from quadrature in log space, so nothing is lost where a density is tiny.

const LOG_2PI = Math.log(2 * Math.PI);

// Quadrature on a line: cells between cuts, a Gauss–Legendre rule in each.

/** Nodes and weights of the Gauss–Legendre rule of n points on [−1, 1]. */
function legendre(n) {
  const nodes = [], weights = [];
  for (let i = 0; i < n; i++) {
    let x = Math.cos((Math.PI * (i + 0.75)) / (n + 0.5)), slope = 1;
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
  return [nodes.reverse(), weights.reverse()];
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
    if (!(half > 1e-13 * (Math.abs(middle) + 1e-3))) continue;
    for (let i = 0; i < n; i++, used++) {
      x[used] = middle + half * points[i];
      w[used] = half * weights[i];
    }
  }
  return { x: x.subarray(0, used), w: w.subarray(0, used) };
}

/** The nodes of p: its log density is looked up once. */
function nodesOf(p, cuts, points = FINE) {
  const nodes = rule(cuts, points);
  const lp = nodes.x.map(p.logp);
  return { ...nodes, lp, p: lp.map(Math.exp) };
}

// Targets on a line.

/** Everything else that is known of a target, from its log density up to a constant. */
function finished(p) {
  let nodes = nodesOf(p, p.cuts), top = -Infinity, total = 0, mean = 0, variance = 0, entropy = 0;
  for (const l of nodes.lp) top = Math.max(top, l);
  nodes.x.forEach((x, i) => {
    const mass = nodes.w[i] * Math.exp(nodes.lp[i] - top);
    total += mass;
    mean += mass * x;
  });
  const logZ = top + Math.log(total);
  mean /= total;
  nodes.x.forEach((x, i) => {
    const mass = nodes.w[i] * Math.exp(nodes.lp[i] - logZ);
    variance += mass * (x - mean) ** 2;
    entropy -= mass * (nodes.lp[i] - logZ);
  });
  const raw = p.logp, sd = Math.sqrt(variance);
  const done = { ...p, logp: (x) => raw(x) - logZ, mean, variance, entropy, sd, peak: top - logZ };
  // Guides worth finding are no wider than this, and no narrower than p's own structure.
  done.fixed = nodesOf(done, [...p.cuts, ...around(mean, sd, SDS)], COARSE);
  return done;
}

/** Σ wₖ N(mₖ, s²): weights need not add up to one. */
export function mixture(means, weights, width) {
  const total = weights.reduce((a, b) => a + b);
  const kept = means.map((m, k) => [m, Math.log(weights[k] / total)]).filter((c) => c[1] > -1e4);
  const n = kept.length, at = kept.map((c) => c[0]), logs = kept.map((c) => c[1]);
  const constant = -0.5 * LOG_2PI - Math.log(width), heights = new Float64Array(n);
  const logp = (x) => {
    let top = -Infinity, sum = 0;
    for (let k = 0; k < n; k++) {
      const z = (x - at[k]) / width;
      heights[k] = logs[k] - 0.5 * z * z;
      if (heights[k] > top) top = heights[k];
    }
    for (let k = 0; k < n; k++) sum += Math.exp(heights[k] - top);
    return constant + top + Math.log(sum);
  };
  const cuts = evenly(at, width);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) cuts.push(...bend(at, logs, width, i, j, logp));
  }
  const starts = at.map((m) => [m, width]);
  return finished({ kind: "mixture", means, weights, width, logp, cuts, starts });
}

/** Even cuts wherever components are, none in the gaps between them. */
function evenly(centres, width) {
  const cuts = [], reach = SDS.at(-1) * width;
  let end = -Infinity;
  for (const m of [...centres].sort((a, b) => a - b)) {
    const begin = Math.max(end, m - reach), n = Math.ceil((m + reach - begin) / (SDS[1] * width));
    const step = (m + reach - begin) / n;
    for (let i = begin === end ? 1 : 0; i <= n; i++) cuts.push(begin + i * step);
    end = m + reach;
  }
  return cuts;
}

/** Cuts where one component takes over from another: log p bends there within s² / distance. */
function bend(at, logs, width, i, j, logp) {
  const apart = at[j] - at[i];
  if (Math.abs(apart) < 2 * width) return []; // a bend so gentle that even cuts see it
  const x = (at[i] + at[j]) / 2 + (width ** 2 * (logs[i] - logs[j])) / apart;
  const height = logs[i] - 0.5 * ((x - at[i]) / width) ** 2 - 0.5 * LOG_2PI - Math.log(width);
  const hidden = logp(x) - height > HIDDEN || !Number.isFinite(x);
  return hidden ? [] : around(x, Math.abs(width ** 2 / apart), BENDS);
}

/** A log density at even steps, cubic between them; tails are [slope, curvature] at both ends. */
export function table({ start, step, logp: values, tails }) {
  const n = values.length, end = start + step * (n - 1);
  const at = (i) => values[Math.max(0, Math.min(n - 1, i))];
  const beyond = (value, [slope, curvature], d) => value + slope * d + 0.5 * curvature * d * d;
  const logp = (x) => {
    if (x <= start) return beyond(values[0], tails[0], start - x);
    if (x >= end) return beyond(values[n - 1], tails[1], x - end);
    const u = (x - start) / step, i = Math.min(n - 2, Math.floor(u));
    return cubic(at(i - 1), at(i), at(i + 1), at(i + 2), u - i);
  };
  const cuts = values.map((_, i) => start + i * step);
  const reach = (t) => (t[0] + Math.sqrt(t[0] ** 2 - 2 * NOTHING * t[1])) / -t[1];
  for (let k = 1; k <= 8; k++) {
    cuts.push(start - (k / 8) * reach(tails[0]), end + (k / 8) * reach(tails[1]));
  }
  const peaks = cuts.slice(1, n - 1).filter((_, i) => at(i) < at(i + 1) && at(i + 1) >= at(i + 2));
  const starts = peaks.slice(0, 8).map((x) => [x, peakWidth(logp, x, (end - start) / 400)]);
  return finished({ kind: "table", logp, cuts, starts });
}

const cubic = (a, b, c, d, t) =>
  b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));

/** The sd of a Gaussian with the curvature that a log density has at a peak. */
function peakWidth(logp, x, h) {
  const curvature = (2 * logp(x) - logp(x - h) - logp(x + h)) / h ** 2;
  return curvature > 0 ? 1 / Math.sqrt(curvature) : 4 * h;
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
    const d = lp - lq, gentle = Math.LN2 - Math.log1p(Math.exp(-Math.abs(d)));
    const of_p = gentle + Math.min(0, d), of_q = gentle - Math.max(0, d); // log p/m, log q/m
    out[0] = 0.5 * (p * of_p + q * of_q);
    out[1] = 0.5 * q * of_q;
    out[2] = out[1] + (p + q > 0 ? (0.5 * q * p) / (p + q) : 0);
  },
  total_variation(lp, lq, p, q, out) {
    out[0] = 0.5 * Math.abs(p - q);
    out[1] = out[2] = 0.5 * q * Math.sign(lq - lp);
  },
};

/** Amari's α-divergence (∫ pᵃ q¹⁻ᵃ − 1) / (a(a − 1)): KL(q‖p) at 0, KL(p‖q) at 1. */
function amari(a) {
  if (a <= 0) return TERMS.reverse_kl;
  if (a >= 1) return TERMS.forward_kl;
  return (lp, lq, p, q, out) => {
    const both = Math.exp(a * lp + (1 - a) * lq);
    out[0] = (both - a * p - (1 - a) * q) / (a * (a - 1));
    out[1] = (q - both) / a;
    out[2] = (q - (1 - a) * both) / a;
  };
}

const OUT = [0, 0, 0];

/** D with its gradient and Hessian in (μ / σ, log σ), over given nodes of p. */
function slopes(term, nodes, { mu, sigma }) {
  const { x, w, lp, p } = nodes, constant = -0.5 * LOG_2PI - Math.log(sigma);
  let value = 0, g0 = 0, g1 = 0, h00 = 0, h01 = 0, h11 = 0;
  for (let i = 0; i < x.length; i++) {
    const z = (x[i] - mu) / sigma, lq = constant - 0.5 * z * z;
    term(lp[i], lq, p[i], Math.exp(lq), OUT);
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
function logOf({ mu, sigma }) {
  const constant = -0.5 * LOG_2PI - Math.log(sigma);
  return (x) => constant - 0.5 * ((x - mu) / sigma) ** 2;
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
  for (let k = 0; k < 80 && high - low > 1e-14 * Math.abs(high); k++) {
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
    if (Math.abs(here) < 1e-12) break;
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
    cuts.push(...around(x, Math.min(1 / steepness(p, logq, x, q.sigma), q.sigma), BENDS));
  }
  return nodesOf(p, cuts);
}

/** |r′| at a crossing: how fast p and q part there. */
function steepness(p, logq, x, sigma) {
  const h = 1e-5 * sigma, r = (at) => p.logp(at) - logq(at);
  return Math.abs(r(x + h) - r(x - h)) / (2 * h);
}

/** KL(p‖q) from moments: −H(p) + log σ + ½ log 2π + ½ (v + (m − μ)²) / σ². */
export const forwardKl = (p, { mu, sigma }) =>
  0.5 * LOG_2PI + Math.log(sigma) - p.entropy +
  (0.5 * (p.variance + (p.mean - mu) ** 2)) / sigma ** 2;

/** All four readouts of one q, in nats but for the total variation. */
export function measure(p, q) {
  const nodes = adapted(p, q), { x, w, lp } = nodes, logq = logOf(q);
  const sums = { reverse_kl: 0, jensen_shannon: 0, total_variation: 0 };
  for (let i = 0; i < x.length; i++) {
    const lq = logq(x[i]);
    const a = nodes.p[i], b = Math.exp(lq);
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
  let value = 0, sign = Math.sign(logq(x[0]) - lp[0]);
  for (let i = 0; i < x.length; i++) {
    value += 0.5 * w[i] * Math.abs(mass[i] - Math.exp(logq(x[i])));
  }
  for (const at of crossings(p, p.fixed, logq)) {
    const z = (at - q.mu) / q.sigma, s = z * z - 1, height = Math.exp(-0.5 * (LOG_2PI + z * z));
    const f = sign * height, moves = height / (q.sigma * steepness(p, logq, at, q.sigma) + 1e-12);
    g[0] -= f;
    g[1] -= f * z;
    h[0] += moves * z * z - f * z;
    h[1] += moves * z * s - f * s;
    h[2] += moves * s * s - f * z * s;
    sign = -sign;
  }
  return { value, g, h };
}

/** Newton's step in (μ / σ, log σ), downhill along directions of negative curvature too. */
function newtonStep({ g, h }) {
  const middle = (h[0] + h[2]) / 2, apart = Math.hypot((h[0] - h[2]) / 2, h[1]);
  const angle = 0.5 * Math.atan2(2 * h[1], h[0] - h[2]), c = Math.cos(angle), s = Math.sin(angle);
  const floor = 1e-9 + 1e-7 * (Math.abs(middle) + apart);
  const a = -(c * g[0] + s * g[1]) / Math.max(Math.abs(middle + apart), floor);
  const b = -(c * g[1] - s * g[0]) / Math.max(Math.abs(middle - apart), floor);
  const step = [c * a - s * b, s * a + c * b];
  const most = Math.max(Math.abs(step[0]) / 2, Math.abs(step[1]), 1);
  return [step[0] / most, step[1] / most, middle - apart];
}

/** Damped Newton from q to the local optimum nearby; null where it ends anywhere else. */
function settled(fn, q, { most = 60, bySlope = false, stuck = null } = {}) {
  let here = fn(q), least = 0;
  for (let k = 0; k < most; k++) {
    const [u, v, curvature] = newtonStep(here);
    least = curvature;
    if (Math.hypot(u, v) < 1e-8) break;
    let share = 1, next, there;
    for (; share > 1e-3; share /= 3) {
      next = { mu: q.mu + share * u * q.sigma, sigma: q.sigma * Math.exp(share * v) };
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
  const flat = Math.hypot(...here.g) < 1e-6;
  if (!flat) stuck?.push({ ...q, value: here.value });
  return flat && least > 0 && Number.isFinite(here.value) ? { ...q, value: here.value } : null;
}

const same = (a, b, near = 1e-3) =>
  Math.abs(a.mu - b.mu) < near * a.sigma && Math.abs(Math.log(a.sigma / b.sigma)) < near;

/** Guides that searches begin at: at each mode, over neighbours, and over all. */
function startsOf(p) {
  const ordered = [...p.starts].sort((a, b) => a[0] - b[0]);
  const pairs = ordered.slice(1).map(([m, s], k) => {
    const [n, t] = ordered[k];
    return [(m + n) / 2, (m - n) / 2 + (s + t) / 2];
  });
  return [...ordered, ...pairs, [p.mean, p.sd]].map(([mu, sigma]) => ({ mu, sigma }));
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
  const at = (x) => ({ mu: q.mu + x[0] * q.sigma, sigma: q.sigma * Math.exp(x[1]) });
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
  const forward = { mu: p.mean, sigma: p.sd };
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
  const alphas = Array.from({ length: steps }, (_, k) => k / (steps - 1)), branches = [];
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

const OFFSETS = Array.from({ length: 121 }, (_, i) => (i - 60) * 0.14); // sds: even steps suffice

/** A target's own nodes: cells along its outer axis, even steps across where its mass is there. */
function product(p, cuts, inner) {
  const { x: t, w } = rule(cuts, FINE), points = [];
  t.forEach((outer, i) => {
    const [centre, width] = inner(outer);
    for (const u of OFFSETS) points.push([outer, centre + u * width, w[i] * 0.14 * width]);
  });
  return points.map(([a, b, w]) => (p.axis ? [b, a, w] : [a, b, w]));
}

/** Nodes of a ring: cells along its radius, even steps around. */
function polar(radius, width) {
  const reach = around(radius, width, SDS).filter((r) => r > 0), n = 96;
  const { x: r, w } = rule([0, ...reach], FINE), points = [];
  r.forEach((length, i) => {
    for (let k = 0; k < n; k++) {
      const angle = (2 * Math.PI * k) / n;
      const at = [length * Math.cos(angle), length * Math.sin(angle)];
      points.push([...at, (w[i] * length * 2 * Math.PI) / n]);
    }
  });
  return points;
}

const square = (x) => x * x;

/** Log density up to a constant, what to look at, and where its structure is. */
const PLANE = {
  bimodal: {
    label: "bimodal",
    box: [-7.5, 7.5, -4.5, 4.5],
    axis: 0,
    cuts: around(0, 1 / 8, BENDS),
    fine: 1,
    logp: (x, y) => Math.log(Math.exp(-8 * Math.abs(x)) + 1) -
      0.5 * (square(Math.abs(x) - 4) + y * y),
    nodes: (p) => product(p, [...evenly([-4, 4], 1), ...p.cuts], () => [0, 1]),
  },
  banana: {
    label: "banana",
    box: [-4, 4, -5, 12],
    axis: 0,
    cuts: [],
    fine: 0.5,
    logp: (x, y) => -0.5 * (x * x + square((y - 2 * (x * x - 1)) / 0.5)),
    nodes: (p) => product(p, evenly([0], 1), (x) => [2 * (x * x - 1), 0.5]),
  },
  funnel: {
    label: "funnel",
    box: [-6, 6, -5, 5],
    axis: 1,
    cuts: [],
    fine: 0.5,
    logp: (x, y) => -0.5 * (square(y / 1.5) + x * x * Math.exp(-y) + y),
    nodes: (p) => product(p, evenly([0], 1.5), (y) => [0, Math.exp(y / 2)]),
  },
  ring: {
    label: "ring",
    box: [-5.5, 5.5, -5, 5],
    axis: 0,
    cuts: [],
    fine: 0.3,
    constant: 3.3446022752084676, // log of its mass
    logp: (x, y) => -0.5 * square((Math.hypot(x, y) - 3) / 0.6),
    nodes: () => polar(3, 0.6),
  },
};

/** A grid of log p, xs by ys, cubic between and falling like a Gaussian beyond. */
export function grid({ label, x, y, logp: values, sd }) {
  const [nx, ny] = [x.length, y.length], step = [x[1] - x[0], y[1] - y[0]];
  const clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
  const at = (i, j) => values[clamp(i, nx)][clamp(j, ny)];
  const logp = (u, v) => {
    const a = clamp((u - x[0]) / step[0], nx), b = clamp((v - y[0]) / step[1], ny);
    const i = Math.min(nx - 2, Math.floor(a)), j = Math.min(ny - 2, Math.floor(b));
    const row = (k) => cubic(at(k, j - 1), at(k, j), at(k, j + 1), at(k, j + 2), b - j);
    const inside = cubic(row(i - 1), row(i), row(i + 1), row(i + 2), a - i);
    const away = [u - x[0] - a * step[0], v - y[0] - b * step[1]];
    const ends = [(x[nx - 1] - x[0]) / 2, (y[ny - 1] - y[0]) / 2];
    // As a Gaussian goes on from that edge: slope and curvature by the spread of p.
    const fall = (d, k) => d && (Math.abs(d) * ends[k] + 0.5 * d * d) / sd[k] ** 2;
    return inside - fall(away[0], 0) - fall(away[1], 1);
  };
  const nodes = () => x.flatMap((u) => y.map((v) => [u, v, step[0] * step[1]]));
  const box = [x[0], x[nx - 1], y[0], y[ny - 1]], fine = 2 * Math.max(...step);
  return plane({ label, box, axis: 0, cuts: [], fine, logp, nodes });
}

/** Everything else that is known of a target in the plane. */
export function plane(source) {
  const p = typeof source === "string" ? { name: source, ...PLANE[source] } : source;
  const points = p.nodes(p), raw = points.map(([x, y]) => p.logp(x, y));
  const top = raw.reduce((a, b) => Math.max(a, b), -Infinity);
  const mass = points.map((n, i) => n[2] * Math.exp(raw[i] - top));
  const total = mass.reduce((a, b) => a + b), logZ = top + Math.log(total);
  const mean = [0, 0], covariance = [0, 0, 0]; // xx, xy, yy
  let entropy = 0;
  points.forEach(([x, y], i) => {
    mean[0] += (mass[i] / total) * x;
    mean[1] += (mass[i] / total) * y;
    entropy -= (mass[i] / total) * (raw[i] - logZ);
  });
  points.forEach(([x, y], i) => {
    const [a, b] = [x - mean[0], y - mean[1]];
    [a * a, a * b, b * b].forEach((v, k) => (covariance[k] += (mass[i] / total) * v));
  });
  const kept = points.map((n, i) => [n[0], n[1], mass[i] / total, raw[i] - logZ]);
  const nodes = kept.filter((n) => n[2] > 1e-14), logp = (x, y) => p.logp(x, y) - logZ;
  return { ...p, logp, peak: top - logZ, mean, covariance, entropy, nodes };
}

/** Mean and Cholesky factor [l₁₁, l₂₁, l₂₂] of an ellipse of half axes s (sds) at an angle. */
export function factored({ m, s, angle }) {
  const c = Math.cos(angle), n = Math.sin(angle), [a, b] = s.map(square);
  return { m, l: cholesky([c * c * a + n * n * b, c * n * (a - b), n * n * a + c * c * b]) };
}

const cholesky = ([xx, xy, yy]) => {
  const a = Math.sqrt(xx), b = xy / a;
  return [a, b, Math.sqrt(Math.max(yy - b * b, 1e-300))];
};

/** The ellipse of a covariance [xx, xy, yy]: half axes and the angle of the first. */
export function ellipseOf(m, [xx, xy, yy]) {
  const middle = (xx + yy) / 2, apart = Math.hypot((xx - yy) / 2, xy);
  const s = [middle + apart, Math.max(middle - apart, 1e-300)].map(Math.sqrt);
  return { m, s, angle: 0.5 * Math.atan2(2 * xy, xx - yy) };
}

const squared = ([a, b, c]) => [a * a, a * b, b * b + c * c];

/** Call fn(x, y, weight) at nodes of q: exact where log p is smooth on the scale p.fine. */
function overGuide(p, { m, l }, fn) {
  const [xx, xy, yy] = squared(l), swap = p.axis === 1;
  const outer = Math.sqrt(swap ? yy : xx), slope = xy / (swap ? yy : xx);
  const inner = Math.sqrt((swap ? xx : yy) - slope * xy), fine = p.fine ?? Infinity;
  const [a, b] = swap ? [m[1], m[0]] : m;
  const parts = Math.min(6, Math.ceil((1.5 * outer) / (4 * fine)) || 1), cuts = [];
  const ends = around(a, outer, SDS.slice(0, -1)).sort((s, t) => s - t);
  ends.slice(1).forEach((end, i) => {
    for (let k = 0; k < parts; k++) cuts.push(ends[i] + (k / parts) * (end - ends[i]));
  });
  cuts.push(ends.at(-1), ...p.cuts.filter((t) => Math.abs(t - a) < 8 * outer));
  const { x: t, w } = rule(cuts, FINE), h = Math.max(Math.min(0.3, fine / inner / 2), 0.12);
  const n = Math.ceil(7.5 / h), scale = 1 / (2 * Math.PI);
  for (let i = 0; i < t.length; i++) {
    const z = (t[i] - a) / outer, centre = b + slope * (t[i] - a);
    const share = (w[i] / outer) * h * scale;
    for (let k = -n; k <= n; k++) {
      const u = k * h, v = centre + u * inner;
      const weight = share * Math.exp(-0.5 * (z * z + u * u));
      if (swap) fn(v, t[i], weight);
      else fn(t[i], v, weight);
    }
  }
}

/** Log q of a Gaussian in the plane, a function of x and y. */
function logOfPlane({ m, l }) {
  const constant = -LOG_2PI - Math.log(l[0] * l[2]);
  return (x, y) => {
    const u = (x - m[0]) / l[0], v = (y - m[1] - l[1] * u) / l[2];
    return constant - 0.5 * (u * u + v * v);
  };
}

function forwardPlane(p, { m, l }) {
  const [xx, xy, yy] = p.covariance, d = [p.mean[0] - m[0], p.mean[1] - m[1]];
  const second = [xx + d[0] * d[0], xy + d[0] * d[1], yy + d[1] * d[1]];
  // The trace of L⁻¹ S L⁻ᵀ.
  const a = second[0] / l[0] ** 2, k = l[1] / l[0];
  const b = (second[2] - 2 * k * second[1] + k * k * second[0]) / l[2] ** 2;
  return LOG_2PI + Math.log(l[0] * l[2]) - p.entropy + 0.5 * (a + b);
}

/** All four readouts in the plane; those of p and q alike half over p and half over q. */
export function measurePlane(p, ellipse) {
  const q = factored(ellipse), logq = logOfPlane(q), sums = [0, 0, 0];
  // a share of p + q: it hardly changes where one of them dwarfs the other
  const add = (r, weight) => {
    const small = Math.exp(-Math.abs(r)), part = small / (1 + small),
      far = Math.LN2 - Math.log1p(small);
    sums[0] += 0.5 * weight * (far - part * Math.abs(r));
    sums[1] += 0.5 * weight * (1 - 2 * part);
  };
  overGuide(p, q, (x, y, w) => {
    const r = p.logp(x, y) - logq(x, y);
    add(r, w);
    sums[2] -= w * r;
  });
  for (const [x, y, w, lp] of p.nodes) add(lp - logq(x, y), w);
  const [jensen_shannon, total_variation, reverse_kl] = sums;
  return { forward_kl: forwardPlane(p, q), reverse_kl, jensen_shannon, total_variation };
}

// Ways down: gradients of both directions of KL.

/** Repeatable random numbers: a function for uniform ones, and one for Gaussian ones. */
export function random(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

/** A node of p, drawn by its mass. */
function drawn(p, uniform) {
  if (!p.cumulative) {
    let sum = 0;
    const { nodes, fixed } = p;
    p.cumulative = nodes ? nodes.map((n) => (sum += n[2]))
      : Array.from(fixed.x, (_, i) => (sum += fixed.w[i] * fixed.p[i]));
  }
  const c = p.cumulative, at = uniform() * c.at(-1);
  let low = 0, high = c.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (c[middle] < at) low = middle + 1;
    else high = middle;
  }
  return p.nodes ? p.nodes[low] : p.fixed.x[low];
}

/** The gradient of a KL in (μ, log σ), exact or from draws. */
export function gradient(p, q, direction, { draws, rng }) {
  const { mu, sigma } = q, forward = direction === "forward_kl";
  if (!draws && forward) {
    const d = mu - p.mean;
    return [d / sigma ** 2, 1 - (p.variance + d * d) / sigma ** 2];
  }
  if (!draws) {
    const { g } = slopes(TERMS.reverse_kl, nodesOf(p, [...p.cuts, ...around(mu, sigma, SDS)]), q);
    return [g[0] / sigma, g[1]];
  }
  const sum = [0, 0], h = 1e-4 * sigma;
  for (let k = 0; k < draws; k++) {
    const z = forward ? (drawn(p, rng.uniform) - mu) / sigma : rng.normal(), x = mu + sigma * z;
    // Forward: minus the score of q at a draw of p. Reverse: through the draw itself.
    const slope = forward ? 0 : (p.logp(x + h) - p.logp(x - h)) / (2 * h);
    sum[0] -= forward ? z / sigma : slope;
    sum[1] -= forward ? z * z - 1 : slope * sigma * z + 1;
  }
  return sum.map((v) => v / draws);
}

const bounded = (v, most) => Math.max(-most, Math.min(most, v));

/** One step down; no longer than 3 sds in μ and 1 in log σ, lest a steep wall throws q away. */
export function descend(p, q, direction, how) {
  const [a, b] = gradient(p, q, direction, how), { rate, natural } = how;
  const step = natural ? [a * q.sigma ** 2, b / 2] : [a, b]; // Fisher: 1/σ² and 2
  return {
    mu: q.mu - bounded(rate * step[0], 3 * q.sigma),
    sigma: q.sigma * Math.exp(-bounded(rate * step[1], 1)),
  };
}

/** Gradients in the plane where q is standard: by the mean, and (11, 21, 22) by the factor. */
function gradientPlane(p, q, direction, { draws, rng }) {
  const { m, l } = q, sum = [0, 0, 0, 0, 0], forward = direction === "forward_kl";
  const white = (x, y) => {
    const u = (x - m[0]) / l[0];
    return [u, (y - m[1] - l[1] * u) / l[2]];
  };
  const add = (a, b, values) => values.forEach((v, k) => (sum[k] += v * (k < 2 ? a : b)));
  if (forward) { // −E_p of the score of q
    const each = (x, y, w) => {
      const [u, v] = white(x, y);
      add(w, w, [u, v, u * u - 1, u * v, v * v - 1]);
    };
    if (!draws) for (const [x, y, w] of p.nodes) each(x, y, w);
    for (let k = 0; k < draws; k++) each(...drawn(p, rng.uniform).slice(0, 2), 1 / draws);
  } else if (draws) { // through the draws
    for (let k = 0; k < draws; k++) {
      const [u, v] = [rng.normal(), rng.normal()], h = 1e-4 * Math.min(l[0], l[2]);
      const x = m[0] + l[0] * u, y = m[1] + l[1] * u + l[2] * v;
      const dx = (p.logp(x + h, y) - p.logp(x - h, y)) / (2 * h);
      const dy = (p.logp(x, y + h) - p.logp(x, y - h)) / (2 * h);
      const [a, b] = [l[0] * dx + l[1] * dy, l[2] * dy], w = 1 / draws;
      add(w, w, [a, b, a * u + 1, b * u, b * v + 1]);
    }
  } else {
    sum[2] = sum[4] = 1;
    overGuide(p, q, (x, y, weight) => {
      const [u, v] = white(x, y), w = weight * p.logp(x, y);
      add(w, w, [u, v, u * u - 1, u * v, v * v - 1]);
    });
  }
  return sum.map((v) => -v);
}

/** One step down in the plane, with the same bounds. */
export function descendPlane(p, q, direction, how) {
  const [g0, g1, a, b, c] = gradientPlane(p, q, direction, how), { l } = q,
    { rate, natural } = how;
  // Plain: by μ it is L⁻ᵀ g, and by log l₁₁, l₂₁, log l₂₂ the lower half of L⁻ᵀ G.
  const v = g1 / l[2], u = (g0 - l[1] * v) / l[0];
  const dm = natural ? [l[0] * g0, l[1] * g0 + l[2] * g1] : [u, v];
  const dl = natural ? [a / 2, l[1] * (a / 2) + l[2] * b, c / 2] :
    [a - (l[1] * b) / l[2], b / l[2], c];
  const sds = [l[0], Math.hypot(l[1], l[2])];
  return {
    m: q.m.map((x, k) => x - bounded(rate * dm[k], 3 * sds[k])),
    l: [
      l[0] * Math.exp(-bounded(rate * dl[0], 1)),
      l[1] - bounded(rate * (natural ? dl[1] - (l[1] * a) / 2 : dl[1]), sds[1]),
      l[2] * Math.exp(-bounded(rate * dl[2], 1)),
    ],
  };
}

// The page: one state, controls that show it, boards that draw it.

const START = {
  target: "mixture", modes: 3, spread: 3, decay: 0.55, width: 0.5, means: null,
  mu: 0.8, sigma: 1.2, shown: ["forward_kl", "reverse_kl"], alpha: 0.3,
  way: { rate: 0.1, draws: 0, natural: true, seed: 1 },
  plane: { target: "bimodal", m: [1.5, 0.5], s: [1.6, 0.9], angle: 0.5 },
};
const LOOKS = {
  forward_kl: ["KL(p‖q), forward", "--forward", []],
  reverse_kl: ["KL(q‖p), reverse", "--reverse", [7, 3]],
  jensen_shannon: ["Jensen–Shannon", "--js", [9, 3, 2, 3]],
  total_variation: ["total variation", "--tv", [2, 3]],
};
const DIRECTIONS = ["forward_kl", "reverse_kl"];
// What stands beside panels comes with the page: `words` and `scripts` of explorer.py.
const ASKED = {
  optima: ["Before you look: which best Gaussian is wider?", ["forward KL's", "reverse KL's"],
    ({ best }) => {
      const [f, r] = DIRECTIONS.map((name) => best[name][0].sigma);
      return [f >= r ? 0 : 1, `σ is ${short(f)} by forward KL and ${short(r)} by reverse KL.`];
    }],
  move: ["Put q on one mode alone. Which of the two KLs is larger?", ["KL(p‖q)", "KL(q‖p)"],
    ({ read }) => [read.forward_kl > read.reverse_kl ? 0 : 1,
      `KL(p‖q) is ${short(read.forward_kl)} and KL(q‖p) ${short(read.reverse_kl)} for your q.`]],
  way: ["How many valleys has reverse KL here?", ["one", "more"],
    ({ best: { reverse_kl: all } }) =>
    [all.length === 1 ? 0 : 1, `${all.length}, the crosses in its map.`]],
};

const short = (x) =>
  (Number.isFinite(x) ? String(Number(x.toPrecision(4))) : "∞").replace("-", "−");

/** An element with properties and children. */
function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** A number that may be typed, dragged or stepped, shown wherever it comes from. */
function field(app, label, get, set, { kind = "number", ...limits }) {
  const input = h("input", { type: kind, ...limits, "aria-label": label });
  const out = h("output", {}, ""), text = h("label", { className: "field" }, `${label} `, input);
  if (kind === "range") text.append(out);
  input.addEventListener("input", () => {
    const value = input.valueAsNumber, { min = -Infinity, max = Infinity } = limits;
    const fits = value >= min && value <= max;
    input.setAttribute("aria-invalid", String(!fits));
    if (fits) set(value);
  });
  app.shown.push(() => {
    if (document.activeElement !== input || kind === "range") input.value = get();
    out.value = short(get());
  });
  return text;
}

function choice(app, label, options, get, set) {
  const picks = Object.entries(options).map(([value, text]) => h("option", { value }, text));
  const input = h("select", { "aria-label": label }, ...picks);
  input.addEventListener("change", () => set(input.value));
  app.shown.push(() => (input.value = get()));
  return h("label", { className: "field" }, `${label} `, input);
}

function tick(app, label, get, set, colour) {
  const input = h("input", { type: "checkbox" });
  input.addEventListener("change", () => set(input.checked));
  app.shown.push(() => (input.checked = get()));
  const text = h("label", { className: "tick" }, input, ` ${label}`);
  if (colour) text.style.setProperty("--mark", `var(${colour})`);
  return text;
}

const button = (label, onclick) => h("button", { type: "button", onclick }, label);

/** A canvas with axes: where a pointer takes hold, `grab` says what its moves do. */
function board(app, name, label, { height, touch = "none", view, draw, grab, key }) {
  const canvas = h("canvas", {
    tabIndex: 0, role: "application", "aria-label": label, "aria-roledescription": "graph",
  });
  canvas.dataset.board = name;
  canvas.style.height = `${height}px`;
  canvas.style.touchAction = touch;
  const b = { canvas, colour: (v) => app.colours[v] };
  b.paint = () => {
    const width = canvas.clientWidth, ratio = globalThis.devicePixelRatio || 1;
    if (!width) return;
    canvas.dataset.view = view();
    const [w, t] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== t) [canvas.width, canvas.height] = [w, t];
    const [x0, x1, y0, y1] = view();
    Object.assign(b, {
      width, height, ratio, view: [x0, x1, y0, y1], c: canvas.getContext("2d"),
      X: (x) => ((x - x0) / (x1 - x0)) * width, Y: (y) => height - ((y - y0) / (y1 - y0)) * height,
      x: (u) => x0 + (u / width) * (x1 - x0), y: (v) => y0 + (1 - v / height) * (y1 - y0),
    });
    b.c.setTransform(ratio, 0, 0, ratio, 0, 0);
    b.c.clearRect(0, 0, width, height);
    draw(b);
  };
  const place = (e) => {
    const box = canvas.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  };
  let held = null;
  canvas.addEventListener("pointerdown", (e) => {
    held = grab(...place(e), b, e.pointerType === "touch" ? 24 : 14);
    if (!held) return;
    app.held = true;
    if (e.isTrusted) canvas.setPointerCapture(e.pointerId);
    canvas.focus({ preventScroll: true });
    e.preventDefault();
  });
  canvas.addEventListener("pointermove", (e) => held?.(...place(e)));
  const drop = () => {
    if (!held) return;
    held = null;
    app.held = false;
    app.changed("view");
  };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", drop);
  canvas.addEventListener("keydown", (e) => {
    const big = e.shiftKey ? 5 : 1, arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const [a, c] = { ...arrows, ArrowUp: [0, 1], ArrowDown: [0, -1] }[e.key] ?? [];
    if (a === undefined && !"+-[]".includes(e.key)) return;
    e.preventDefault();
    key((a ?? 0) * big, (c ?? 0) * big, e.key);
  });
  app.boards.push(b);
  return canvas;
}

// What boards draw.

function line({ c, X, Y, view, width }, fn, colour, dash, thick = 2) {
  c.beginPath();
  for (let u = 0; u <= width; u++) c.lineTo(u, Y(fn(view[0] + (u / width) * (view[1] - view[0]))));
  Object.assign(c, { strokeStyle: colour, lineWidth: thick, lineJoin: "round" });
  c.setLineDash(dash);
  c.stroke();
  c.setLineDash([]);
}

/** Fill between two curves wherever the first is higher. */
function between({ c, Y, view, width }, upper, lower, colour, alpha) {
  c.beginPath();
  const x = (u) => view[0] + (u / width) * (view[1] - view[0]);
  for (let u = 0; u <= width; u++) c.lineTo(u, Y(Math.max(upper(x(u)), lower(x(u)))));
  for (let u = width; u >= 0; u--) c.lineTo(u, Y(lower(x(u))));
  Object.assign(c, { fillStyle: colour, globalAlpha: alpha });
  c.fill();
  c.globalAlpha = 1;
}

function dot({ c }, u, v, radius, fill, edge) {
  c.beginPath();
  c.arc(u, v, radius, 0, 2 * Math.PI);
  Object.assign(c, { fillStyle: fill, strokeStyle: edge, lineWidth: 1.5 });
  c.fill();
  c.stroke();
}

function words({ c, colour }, text, u, v, align = "left", shade = "--quiet") {
  Object.assign(c,
    { fillStyle: colour(shade), font: "12px system-ui, sans-serif", textAlign: align });
  c.fillText(text, u, v);
}

/** Numbers along the lower edge. */
function axis(b, title) {
  const [lo, hi] = b.view, step = 10 ** Math.floor(Math.log10((hi - lo) / 3));
  const every = (hi - lo) / step > 12 ? 5 * step : (hi - lo) / step > 6 ? 2 * step : step;
  for (let x = Math.ceil(lo / every) * every; x < hi; x += every) {
    const u = b.X(x), inside = u > 12 && u < b.width - 30;
    if (inside) words(b, short(Math.round(x / every) * every), u, b.height - 4, "center");
  }
  words(b, title, b.width - 4, b.height - 4, "right");
}

/** A picture of bands, one shade for each, of a function of places in the view. */
function bands(b, values, shadeOf, rgb) {
  const [w, t] = [Math.ceil(b.width / 2), Math.ceil(b.height / 2)];
  const image = new ImageData(w, t), sheet = h("canvas", { width: w, height: t });
  for (let j = 0; j < t; j++) {
    for (let i = 0; i < w; i++) {
      const at = 4 * (j * w + i);
      image.data.set(rgb, at);
      image.data[at + 3] = 255 * shadeOf(values(b.x(2 * i + 1), b.y(2 * j + 1)));
    }
  }
  sheet.getContext("2d").putImageData(image, 0, 0);
  return sheet;
}

const rgbOf = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** A banded picture, kept until what it shows changes. */
function backdrop(b, app, version, make) {
  const now = [version, b.width, b.height, b.view, app.dark].join();
  if (b.known !== now) [b.known, b.sheet] = [now, make()];
  b.c.imageSmoothingEnabled = true;
  b.c.drawImage(b.sheet, 0, 0, b.width, b.height);
}

/** Two ways down from one q, a step at a time. */
function walker(app, kind, start, step) {
  const w = { paths: null, timer: 0 };
  w.reset = () => {
    cancelAnimationFrame(w.timer);
    w.timer = 0;
    w.rng = random(app.state.way.seed);
    w.paths = Object.fromEntries(DIRECTIONS.map((name) => [name, [start()]]));
  };
  w.step = (times = 1) => {
    const how = { ...app.state.way, rng: w.rng };
    for (let k = 0; k < times; k++) {
      for (const name of DIRECTIONS) w.paths[name].push(step(w.paths[name].at(-1), name, how));
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
    if (w.timer) w.stop();
    else if (matchMedia("(prefers-reduced-motion: reduce)").matches) w.step(200);
    else w.timer = requestAnimationFrame(frame);
    app.changed(kind);
  };
  return w;
}

function wayControls(app, walk, again) {
  const set = (name) => (v) => ((app.state.way[name] = v), again());
  const get = (name) => () => app.state.way[name];
  const play = button("Play", () => walk.play()), count = h("span", { className: "quiet" });
  app.shown.push(() => {
    play.textContent = walk.timer ? "Pause" : "Play";
    count.textContent = ` ${walk.paths.forward_kl.length - 1} steps`;
  });
  const kinds = { 0: "exact", 1: "1 draw", 10: "10 draws", 100: "100 draws" };
  return h("div", { className: "controls" },
    h("span", { className: "keys" }, play, button("Step", () => walk.step()),
      button("Reset", again), count),
    field(app, "step size", get("rate"), set("rate"),
      { kind: "range", min: 0.01, max: 1, step: 0.01 }),
    choice(app, "gradient", kinds, get("draws"), (v) => set("draws")(Number(v))),
    tick(app, "natural gradient", get("natural"), set("natural")));
}

/** The four readouts as a table that speaks when it changes. */
function readings(app, title, get) {
  const rows = Object.entries(LOOKS).map(([name, [label, colour]]) => {
    const out = h("output", { name });
    app.shown.push(() => (out.value = short(get()[name])));
    const head = h("th", { scope: "row" }, label);
    head.style.setProperty("--mark", `var(${colour})`);
    return h("tr", {}, head, h("td", {}, out));
  });
  const caption = h("caption", {}, title);
  return h("table", { className: "readings" }, caption, h("tbody", {}, ...rows));
}

function prompt(app, name) {
  if (!ASKED[name]) return "";
  const [question, options, answer] = ASKED[name], out = h("output", { className: "answer" });
  const picks = options.map((text, k) => {
    const input = h("input", { type: "radio", name: `asked-${name}-${app.id}` });
    input.addEventListener("change", () => {
      const [right, why] = answer(app);
      out.value = `${right === k ? "Yes." : "No."} ${why}`;
    });
    return h("label", {}, input, ` ${text} `);
  });
  return h("fieldset", {}, h("legend", {}, question), ...picks, out);
}

function panel(app, name, title, ...parts) {
  const text = h("p", {}, app.words[name]);
  return h("section", { className: `panel ${name}`, "aria-label": title },
    h("h2", {}, title), text, prompt(app, name), ...parts);
}

const curve = ({ mu, sigma }) => {
  const log = logOf({ mu, sigma });
  return (x) => Math.exp(log(x));
};

function targetLine(b, app, top) {
  const p = (x) => Math.exp(app.p.logp(x)), [lo, hi] = b.view;
  between(b, p, () => 0, b.colour("--target"), 0.22);
  line(b, p, b.colour("--target"), [], 1.5);
  b.c.fillStyle = b.colour("--rule");
  b.c.fillRect(b.X(lo), b.Y(0), b.X(hi) - b.X(lo), 1);
  axis(b, "x");
  words(b, "p", 8, 16, "left", "--target");
}

const heightOf = (app, qs) => {
  const most = Math.exp(app.p.peak);
  const high = qs.map((q) => Math.min(1 / (q.sigma * Math.sqrt(2 * Math.PI)), 2.5 * most));
  return 1.1 * Math.max(most, ...high);
};

function optimaPanel(app) {
  const { state } = app, shown = () => Object.keys(LOOKS).filter((n) => state.shown.includes(n));
  const at = () => Math.round(state.alpha * (app.path.alphas.length - 1));
  const now = () => app.path.branches[app.path.best[at()]][at()];
  const tops = () => heightOf(app, [...shown().map((n) => app.best[n][0]), now()].filter(Boolean));
  const curves = board(app, "optima", "The target and its best Gaussians", {
    height: 240, touch: "pan-y", grab: () => null, key: (dx) => slide(state.alpha + dx / 50),
    view: () => [...app.span, -0.16 * tops(), tops()],
    draw(b) {
      targetLine(b, app);
      line(b, curve(now()), b.colour("--ink"), [1, 3], 2.5);
      shown().forEach((name, row) => {
        const [, colour, dash] = LOOKS[name];
        app.best[name].forEach((q, k) => {
          line(b, curve(q), b.colour(colour), k ? [1, 3] : dash, k ? 1 : 2);
          dot(b, b.X(q.mu), b.Y(0) + 6 + 4 * row, 3, b.colour(k ? "--page" : colour),
            b.colour(colour));
        });
      });
    },
  });
  const slide = (v) =>
    ((state.alpha = bounded(v, 1) > 0 ? bounded(v, 1) : 0), app.changed("alpha"));
  const strip = board(app, "strip", "The mean of the best Gaussian along alpha", {
    height: 120, touch: "pan-y", key: (dx) => slide(state.alpha + dx / 50),
    view: () => [-0.03, 1.03, ...app.span],
    grab(u, v, b) {
      const follow = (to) => slide(b.x(to));
      follow(u);
      return follow;
    },
    draw(b) {
      const { alphas, branches, best, jumps } = app.path, { c, X, Y } = b;
      branches.forEach((branch, which) => branch.forEach((q, k) => {
        if (!q) return;
        const on = best[k] === which;
        dot(b, X(alphas[k]), Y(q.mu), on ? 2.5 : 1, b.colour(on ? "--ink" : "--quiet"),
          "transparent");
      }));
      for (const a of [...jumps, state.alpha]) {
        c.fillStyle = b.colour(a === state.alpha ? "--ink" : "--reverse");
        c.fillRect(X(a) - 0.5, 0, a === state.alpha ? 2 : 1, b.height);
      }
      words(b, "μ", 6, 14);
      words(b, "reverse, α = 0", X(0), b.height - 4);
      words(b, "forward, α = 1", X(1), b.height - 4, "right");
      jumps.forEach((a) => words(b, `jumps at ${a.toFixed(2)}`, X(a) + 5, b.height - 20));
    },
  });
  const toggles = Object.entries(LOOKS).map(([name, [label, colour]]) => tick(app, label,
    () => state.shown.includes(name), (on) => {
      state.shown = on ? [...state.shown, name] : state.shown.filter((n) => n !== name);
      app.changed("alpha");
    }, colour));
  const shape = (label, name, limits) => field(app, label, () => state[name], (v) => {
    Object.assign(state,
      { [name]: v, means: name === "width" || name === "decay" ? state.means : null });
    app.changed("target");
  }, { kind: "range", ...limits });
  const sliders = h("div", { className: "controls" },
    shape("modes", "modes", { min: 2, max: 5, step: 1 }),
    shape("spread", "spread", { min: 0, max: 8, step: 0.05 }),
    shape("weight decay", "decay", { min: 0.05, max: 1, step: 0.01 }),
    shape("component width", "width", { min: 0.05, max: 2, step: 0.01 }));
  app.shown.push(() => (sliders.hidden = state.target !== "mixture"));
  const source = app.data?.line ? choice(app, "target",
    { own: app.data.name, mixture: "a mixture of Gaussians" }, () => state.target,
    (v) => ((state.target = v), app.changed("target"))) : "";
  return panel(app, "optima", "Best Gaussians", source, sliders,
    h("div", { className: "controls" }, ...toggles), curves,
    field(app, "α, from reverse to forward KL", () => state.alpha, slide,
      { kind: "range", min: 0, max: 1, step: 0.01 }), strip);
}

function qControls(app) {
  const { state } = app, set = (name) => (v) => ((state[name] = v), app.changed("q"));
  const fits = Object.entries(state.target === "own" || app.data?.line ? app.data.fits : {});
  return h("div", { className: "controls" },
    field(app, "μ", () => state.mu, set("mu"), { step: "any" }),
    field(app, "σ", () => state.sigma, set("sigma"), { step: "any", min: 1e-3, max: 1e6 }),
    ...fits.map(([name, fit]) => button(`q = ${name.replace("_kl", " KL")} fit`, () => {
      Object.assign(state, { mu: fit.mean[0], sigma: Math.sqrt(fit.covariance[0][0]) });
      app.changed("q");
    })));
}

/** Number fields for the places of the modes, which marks below the axis stand for. */
function modeControls(app) {
  const places = () => (app.state.target === "mixture" ? meansOf(app.state) : []);
  const fields = [0, 1, 2, 3, 4].map((k) => field(app, `mode ${k + 1}`, () => places()[k] ?? 0,
    (v) => moveMode(app, k, v), { step: "any" }));
  app.shown.push(() => fields.forEach((f, k) => (f.hidden = k >= places().length)));
  return h("div", { className: "controls" }, ...fields);
}

function moveMode(app, k, to) {
  app.state.means = meansOf(app.state).map((m, i) => (i === k ? to : m));
  app.changed("target");
}

const meansOf = ({ means, modes, spread }) =>
  means ?? Array.from({ length: modes }, (_, k) => spread * (k - (modes - 1) / 2));

/** What a drag at a place of the line does: a mode, a side of q, or all of it. */
function grabLine(app, u, v, b, near) {
  const { state } = app, x = b.x(u), { mu, sigma } = state;
  if (state.target === "mixture" && v > b.Y(0) - 4) {
    const k = meansOf(state).findIndex((m) => Math.abs(b.X(m) - u) < near);
    if (k >= 0) return (to) => moveMode(app, k, b.x(to));
  }
  const away = Math.abs(x - mu) / sigma;
  if (away > 0.7 && away < 3) {
    return (to) => setQ(app, mu, Math.max(Math.abs(b.x(to) - mu) / away, 1e-3));
  }
  return (to) => setQ(app, mu + b.x(to) - x, sigma);
}

function setQ(app, mu, sigma) {
  Object.assign(app.state, { mu, sigma });
  app.changed("q");
}

const nudge = (app) => (dx, dy, key) => {
  const { mu, sigma } = app.state, grow = dy + (key === "+") - (key === "-");
  setQ(app, mu + (dx * (app.span[1] - app.span[0])) / 200, sigma * 1.02 ** grow);
};

function movePanel(app) {
  const { state } = app, top = () => heightOf(app, [state]);
  const canvas =
    board(app, "move", "Target p and your q; arrows left and right move μ, up and down σ",
    {
      height: 260, touch: "pan-y", view: () => [...app.span, -0.14 * top(), top()],
      grab: (...at) => grabLine(app, ...at), key: nudge(app),
      draw(b) {
        const p = (x) => Math.exp(app.p.logp(x)), q = curve(state);
        targetLine(b, app);
        between(b, p, q, b.colour("--forward"), 0.3);
        between(b, q, p, b.colour("--reverse"), 0.3);
        if (state.target === "own") {
          for (const [name, { mean, covariance }] of Object.entries(app.data.fits)) {
            const fit = curve({ mu: mean[0], sigma: Math.sqrt(covariance[0][0]) });
            line(b, fit, b.colour(LOOKS[name]?.[1] ?? "--quiet"), LOOKS[name]?.[2] ?? [2, 4], 1);
          }
        }
        line(b, q, b.colour("--ink"), [], 2.5);
        words(b, "p > q: forward KL pays", b.width - 8, 16, "right", "--forward");
        words(b, "q > p: reverse KL pays", b.width - 8, 32, "right", "--reverse");
        if (state.target !== "mixture") return;
        meansOf(state).forEach((m) => dot(b, b.X(m), b.Y(0) + 8, 6, b.colour("--target"),
          b.colour("--page")));
      },
    });
  const table = readings(app, "of your q, in nats but for the last", () => app.read);
  return panel(app, "move", "Move q yourself", canvas, qControls(app), modeControls(app), table);
}

/** KL over (μ, log σ) on a coarse grid, looked up between its points. */
function landscape(app, name, [x0, x1, y0, y1]) {
  const [nx, ny] = [49, 33], { p } = app, values = new Float64Array(nx * ny);
  const u = Array.from({ length: 31 }, (_, k) => (k - 15) / 3), total = 3 * Math.sqrt(2 * Math.PI);
  for (let i = 0; i < nx; i++) {
    for (let j = 0; j < ny; j++) {
      const mu = x0 + (i / (nx - 1)) * (x1 - x0),
        sigma = Math.exp(y0 + (j / (ny - 1)) * (y1 - y0));
      let value = name === "forward_kl" ? forwardKl(p, { mu, sigma })
        : -0.5 * (1 + LOG_2PI) - Math.log(sigma);
      if (name === "reverse_kl") {
        for (const z of u) value -= (Math.exp(-0.5 * z * z) / total) * p.logp(mu + sigma * z);
      }
      values[i * ny + j] = value;
    }
  }
  return (x, y) => {
    const a = bounded(((x - x0) / (x1 - x0)) * (nx - 1), nx - 1.001),
      i = Math.max(0, Math.floor(a));
    const b = bounded(((y - y0) / (y1 - y0)) * (ny - 1), ny - 1.001),
      j = Math.max(0, Math.floor(b));
    const at = (k) => (1 - b + j) * values[k * ny + j] + (b - j) * values[k * ny + j + 1];
    return (1 - a + i) * at(i) + (a - i) * at(i + 1);
  };
}

function wayPanel(app) {
  const { state } = app, walk = app.walk;
  const view = () => [...app.span, Math.log(0.5 * app.narrow), Math.log(2.5 * app.p.sd)];
  const label = (name) => `${LOOKS[name][0]} over μ and log σ; arrows move q`;
  const maps = DIRECTIONS.map((name) => board(app, name, label(name), {
    height: 250, view, key: nudge(app),
    grab(u, v, b) {
      const follow = (x, y) => setQ(app, b.x(x), Math.exp(b.y(y)));
      follow(u, v);
      return follow;
    },
    draw(b) {
      const shadeOf = (v) =>
        Math.max(0, 0.55 - 0.05 * Math.floor(2 * Math.log2(1 + 8 * Math.max(v, 0))));
      backdrop(b, app, app.version, () =>
        bands(b, landscape(app, name, b.view), shadeOf, rgbOf(b.colour(LOOKS[name][1]))));
      const { c, X, Y } = b, path = walk.paths[name];
      app.best[name].forEach((q) =>
        words(b, "×", X(q.mu), Y(Math.log(q.sigma)) + 4, "center", "--ink"));
      c.beginPath();
      path.forEach((q) => c.lineTo(X(q.mu), Y(Math.log(q.sigma))));
      Object.assign(c, { strokeStyle: b.colour("--ink"), lineWidth: 1.5 });
      c.stroke();
      const end = path.at(-1), ink = b.colour("--ink"), page = b.colour("--page");
      dot(b, X(state.mu), Y(Math.log(state.sigma)), 6, page, ink);
      if (path.length > 1) dot(b, X(end.mu), Y(Math.log(end.sigma)), 4, b.colour(LOOKS[name][1]),
        ink);
      words(b, LOOKS[name][0], 8, 16, "left", "--ink");
      words(b, "log σ ↑", 8, 32);
      axis(b, "μ");
    },
  }));
  return panel(app, "way", "Ways down", wayControls(app, walk, () => app.changed("q")),
    h("div", { className: "pair" }, ...maps));
}

// The plane.

const ends = ({ m, s, angle }) => {
  const [c, n] = [Math.cos(angle), Math.sin(angle)];
  return [[m[0] + 2 * s[0] * c, m[1] + 2 * s[0] * n], [m[0] - 2 * s[1] * n, m[1] + 2 * s[1] * c]];
};

/** The round handle that turns q: a little beyond the end of its first axis. */
const turner = (b, q) => {
  const [x, y] = ends(q)[0], [u, v] = [b.X(x), b.Y(y)], [cu, cv] = [b.X(q.m[0]), b.Y(q.m[1])];
  const far = Math.hypot(u - cu, v - cv) || 1;
  return [u + (26 * (u - cu)) / far, v + (26 * (v - cv)) / far];
};

function grabPlane(app, u, v, b, near) {
  const q = app.state.plane, is = (a, c) => Math.hypot(u - a, v - c) < near;
  const put = (change) => (Object.assign(q, change), app.changed("plane"));
  if (is(...turner(b, q))) {
    return (x, y) => put({ angle: Math.atan2(b.y(y) - q.m[1], b.x(x) - q.m[0]) });
  }
  for (const [k, [x, y]] of ends(q).entries()) {
    if (!is(b.X(x), b.Y(y))) continue;
    const turn = k * Math.PI / 2;
    return (to, at) => {
      const d = [b.x(to) - q.m[0], b.y(at) - q.m[1]], [c, n] = [q.angle + turn, q.angle + turn];
      const long = Math.abs(d[0] * Math.cos(c) + d[1] * Math.sin(n)) / 2;
      put({ s: q.s.map((s, i) => (i === k ? Math.max(long, 0.02) : s)) });
    };
  }
  const from = [b.x(u) - q.m[0], b.y(v) - q.m[1]];
  return (x, y) => put({ m: [b.x(x) - from[0], b.y(y) - from[1]] });
}

function oval(b, q, colour, dash, thick) {
  const [c, n] = [Math.cos(q.angle), Math.sin(q.angle)];
  b.c.beginPath();
  for (let t = 0; t <= 72; t++) {
    const a = 2 * q.s[0] * Math.cos((t * Math.PI) / 36),
      e = 2 * q.s[1] * Math.sin((t * Math.PI) / 36);
    b.c.lineTo(b.X(q.m[0] + c * a - n * e), b.Y(q.m[1] + n * a + c * e));
  }
  Object.assign(b.c, { strokeStyle: colour, lineWidth: thick });
  b.c.setLineDash(dash);
  b.c.stroke();
  b.c.setLineDash([]);
}

function planePanel(app) {
  const q = () => app.state.plane, put = (change) =>
    (Object.assign(q(), change), app.changed("plane"));
  const canvas =
    board(app, "plane", "Contours of p and the ellipse of q; arrows move it, + and − scale " +
    "it, [ and ] turn it", {
    height: 340, view: () => app.box, grab: (...at) => grabPlane(app, ...at),
    key: (dx, dy, key) => {
      const { m, s, angle } = q(), grow = 1.03 ** ((key === "+") - (key === "-"));
      const [x0, x1, y0, y1] = app.box, turn = 0.05 * ((key === "]") - (key === "["));
      put({ m: [m[0] + (dx * (x1 - x0)) / 200, m[1] + (dy * (y1 - y0)) / 200],
        s: s.map((v) => v * grow), angle: angle + turn });
    },
    draw(b) {
      const levels = [0.1, 0.5, 1.2, 2.3, 4.6, 7], ink = b.colour("--ink"),
        page = b.colour("--page");
      const shadeOf = (l) => 0.11 * levels.filter((d) => app.p2.peak - l < d).length;
      backdrop(b, app, app.p2.name ?? "own", () =>
        bands(b, app.p2.logp, shadeOf, rgbOf(b.colour("--target"))));
      for (const name of DIRECTIONS) {
        const [, colour, dash] = LOOKS[name], { m, l } = app.walk2.paths[name].at(-1);
        if (app.walk2.paths[name].length > 1) oval(b, ellipseOf(m, squared(l)), b.colour(colour),
          dash, 2);
        const fit = q().target === "own" && app.data.fits[name];
        if (fit) oval(b, ofFit(fit), b.colour(colour), dash, 1);
      }
      oval(b, q(), ink, [], 2.5);
      const [u, v] = turner(b, q());
      dot(b, u, v, 6, page, ink);
      for (const [x, y] of [q().m, ...ends(q())]) dot(b, b.X(x), b.Y(y), 6, ink, page);
      const names = q().target === "own" ? app.data.names : ["x", "y"];
      axis(b, names[0]);
      words(b, `${names[1]} ↑`, 8, 16);
    },
  });
  const names = Object.fromEntries(Object.entries(PLANE).map(([name, p]) => [name, p.label]));
  const own = app.data?.plane ? { own: app.data.name } : {}, number = { step: "any" };
  const part = (label, key, k, limits) => field(app, label, () => q()[key][k],
    (v) => put({ [key]: q()[key].map((x, i) => (i === k ? v : x)) }), { ...number, ...limits });
  const fits = Object.entries(app.data?.plane ? app.data.fits : {}).map(([name, fit]) =>
    button(`q = ${name.replace("_kl", " KL")} fit`, () => put(ofFit(fit))));
  return panel(app, "plane", "Two dimensions",
    choice(app, "target", { ...own, ...names }, () => q().target,
      (target) => (Object.assign(q(), { target }), app.changed("plane target"))),
    canvas, wayControls(app, app.walk2, () => app.changed("plane")),
    h("div", { className: "controls" }, part("mean x", "m", 0), part("mean y", "m", 1),
      part("first sd", "s", 0, { min: 1e-3 }), part("second sd", "s", 1, { min: 1e-3 }),
      field(app, "angle", () => q().angle, (angle) => put({ angle }), number), ...fits),
    readings(app, "of your q in the plane", () => app.read2));
}

const ofFit = ({ mean, covariance: [[xx, xy], [, yy]] }) => ellipseOf([...mean], [xx, xy, yy]);

// Around the panels: links, files, Python.

/** A script with vi_demo that prints the numbers shown: a template of explorer.py, filled. */
export function python(scripts, state, dim, data) {
  const flat = dim === 1, q = state.plane, target = flat ? state.target : q.target;
  const [xx, xy, yy] = squared(factored(q).l), list = (x) => JSON.stringify(x);
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

const weightsOf = ({ modes, decay }) => {
  const weights = Array.from({ length: modes }, (_, k) => decay ** k);
  return weights.map((w) => w / weights.reduce((a, b) => a + b));
};

function download(name, href) {
  h("a", { href, download: name }).click();
}

function sharePanel(app) {
  const text =
    h("textarea", { readOnly: true, hidden: true, rows: 8, "aria-label": "copied text" });
  const copy = (what) => {
    text.value = what;
    text.hidden = false;
    text.select();
    navigator.clipboard?.writeText(what).catch(() => {}); // it stays selected, for the keyboard
  };
  const link = () => copy(`${location.href.split("#")[0]}#${encoded(app.state)}`);
  const json = () => JSON.stringify({ state: app.state, divergences: app.read, optima: app.best,
    jumps: app.path.jumps, plane: app.read2 }, null, 2);
  const png = () => {
    const boards = app.boards.filter((b) => b.canvas.width), gap = 16;
    const sheet = h("canvas", { width: Math.max(...boards.map((b) => b.canvas.width)),
      height: boards.reduce((sum, b) => sum + b.canvas.height + gap, 0) });
    const c = sheet.getContext("2d");
    c.fillStyle = app.colours["--page"];
    c.fillRect(0, 0, sheet.width, sheet.height);
    let top = 0;
    for (const { canvas } of boards) {
      c.drawImage(canvas, 0, top);
      top += canvas.height + gap;
    }
    download("explorer.png", sheet.toDataURL());
  };
  return h("footer", { className: "controls" }, ...(app.page ? [button("Copy link", link)] : []),
    button("Copy as Python", () => copy(python(app.scripts, app.state, 1, app.data))),
    button("Copy the plane as Python", () => copy(python(app.scripts, app.state, 2, app.data))),
    button("Download PNG", png), button("Download JSON", () =>
      download("explorer.json", `data:application/json,${encodeURIComponent(json())}`)), text);
}

/** The state as text that JSON reads back to the last digit. */
const encoded = (state) => encodeURIComponent(JSON.stringify(state));

/** The state that a link holds; `start` where it is not a link of this page. */
export function decoded(hash, start = START, data = null) {
  try {
    const held = JSON.parse(decodeURIComponent(hash.replace(/^#/, "")));
    const state = { ...start, ...held, way: { ...start.way, ...held.way },
      plane: { ...start.plane, ...held.plane } };
    return sound(state, data) ? state : structuredClone(start);
  } catch {
    return structuredClone(start);
  }
}

function sound({ plane: q, way, means, ...state }, data) {
  const { mu, sigma, spread, decay, width, modes, alpha, shown, target } = state;
  const numbers = [mu, spread, way.seed, q.angle, ...q.m, ...(means ?? [])];
  const scales = [sigma, decay, width, way.rate, ...q.s, alpha + 1];
  return numbers.every(Number.isFinite) && scales.every((x) => x > 0 && x < Infinity) &&
    [2, 3, 4, 5].includes(modes) && (!means || means.length === modes) && alpha <= 1 &&
    [0, 1, 10, 100].includes(way.draws) && shown.every((name) => name in LOOKS) &&
    q.m.length === 2 && q.s.length === 2 &&
      (target === "mixture" || (target === "own" && data?.line)) &&
    (q.target in PLANE || (q.target === "own" && data?.plane));
}

function begin(model) {
  const data = model.get("data") ?? null, page = Boolean(model.get("page")),
    start = structuredClone(START);
  const fit = data && (data.fits.reverse_kl ?? Object.values(data.fits)[0]);
  if (data?.line) start.target = "own";
  if (data?.line && fit) Object.assign(start,
    { mu: fit.mean[0], sigma: Math.sqrt(fit.covariance[0][0]) });
  if (data?.plane) Object.assign(start.plane, { target: "own" }, fit ? ofFit(fit) : {});
  const { words, scripts } = model.get("text");
  return { data, page, words, scripts, state: decoded(page ? location.hash : "", start, data) };
}

/** Keep what Python holds of q and what is drawn the same, whoever moves it. */
function bridge(app, model) {
  const set = (values) => {
    for (const [key, value] of Object.entries(values)) model.set(key, value);
    model.save_changes();
  };
  const take = () => {
    if (app.sending) return;
    if (app.data?.plane) Object.assign(app.state.plane,
      ofFit({ mean: model.get("mean"), covariance: model.get("covariance") }));
    else Object.assign(app.state, { mu: model.get("mu"), sigma: model.get("sigma") });
    app.changed(app.data?.plane ? "plane" : "q");
  };
  for (const key of ["mu", "sigma", "mean", "covariance"]) model.on(`change:${key}`, take);
  return () => {
    const { mu, sigma, plane: q } = app.state, { m, l } = factored(q), [xx, xy, yy] = squared(l);
    app.sending = true;
    set(app.data?.plane ? { mean: m, covariance: [[xx, xy], [xy, yy]] } : { mu, sigma });
    app.sending = false;
  };
}

function render({ model, el }) {
  const app = { ...begin(model), shown: [], boards: [], version: 0, id: Math.random() },
    { state } = app;
  const isDark = matchMedia("(prefers-color-scheme: dark)"),
    root = h("div", { className: "vi-explorer" });
  const lines = ["optima", "strip", "move", ...DIRECTIONS];
  const touched = { target: lines, view: [...lines, "plane"], alpha: ["optima", "strip"],
    q: ["move", ...DIRECTIONS],
    way: DIRECTIONS, plane: ["plane"], "plane target": ["plane"], "way in the plane": ["plane"] };
  app.walk = walker(app, "way", () => ({ mu: state.mu, sigma: state.sigma }),
    (q, name, how) => descend(app.p, q, name, how));
  app.walk2 = walker(app, "way in the plane", () => factored(state.plane),
    (q, name, how) => descendPlane(app.p2, q, name, how));
  const aim = () => {
    app.p = state.target === "own" ? table(app.data.line)
      : mixture(meansOf(state), weightsOf(state), state.width);
    app.best = optima(app.p);
    app.path = alphaPath(app.p, app.best);
    app.version++;
  };
  const look = () => {
    const { mean, sd, starts } = app.p, low = starts.map(([m, s]) => m - 4.5 * s);
    const { mu, plane: { m } } = state, high = starts.map(([at, s]) => at + 4.5 * s);
    app.span = [Math.min(mean - 3 * sd, mu, ...low), Math.max(mean + 3 * sd, mu, ...high)];
    const [x0, x1, y0, y1] = app.p2.box; // q stays in sight
    app.box = [Math.min(x0, m[0]), Math.max(x1, m[0]), Math.min(y0, m[1]), Math.max(y1, m[1])];
    app.narrow = Math.min(sd, ...starts.map((s) => s[1]));
  };
  app.changed = (kind, quiet) => {
    if (kind === "target") aim();
    if (kind === "plane target") {
      app.p2 = state.plane.target === "own" ? grid(app.data.plane) : plane(state.plane.target);
    }
    if (!app.held) look();
    if (kind === "target" || kind === "q") app.read = measure(app.p, state), app.walk.reset();
    if (kind.startsWith("plane")) app.read2 = measurePlane(app.p2, state.plane), app.walk2.reset();
    if (quiet) return;
    for (const show of app.shown) show();
    for (const b of app.boards) if (touched[kind].includes(b.canvas.dataset.board)) b.paint();
    share();
  };
  let waiting = 0;
  const send = bridge(app, model), share = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (app.page && location.protocol !== "about:") history.replaceState(null, "",
        `#${encoded(state)}`);
      send();
    }, 100);
  };
  const paint = () => {
    const style = getComputedStyle(root);
    const names = ["page", "ink", "quiet", "rule", "target", "forward", "reverse", "js", "tv"];
    app.colours = { transparent: "transparent" };
    for (const name of names) app.colours[`--${name}`] = style.getPropertyValue(`--${name}`).trim();
    app.dark = isDark.matches;
    for (const b of app.boards) b.paint();
  };
  aim();
  app.changed("plane target", true);
  app.changed("q", true);
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

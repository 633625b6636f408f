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
    for (let i = begin === end ? 1 : 0; i <= n; i++) cuts.push(begin + (i / n) * (m + reach - begin));
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
  for (let i = 0; i < x.length; i++) value += 0.5 * w[i] * Math.abs(mass[i] - Math.exp(logq(x[i])));
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

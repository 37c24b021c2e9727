// What the daemon's endpoints return, as the figures of an interval. Nothing here touches the document.

const NONE = "–";
const HISTORY = 150;
const PERIOD_MS = 2000;
const MINUTE = 60_000 / PERIOD_MS;

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const all = (calls) => sum(Object.values(calls).flatMap((outcomes) => Object.values(outcomes)));
const failed = (calls) => all(calls) - sum(Object.values(calls).map((outcomes) => outcomes.OK ?? 0));

// Histograms of the Prometheus text format by one of their labels: {bounds, counts}, the counts cumulative.
function histograms(text, name, label) {
  const found = new Map();
  for (const [, labels, value] of text.matchAll(new RegExp(`^${name}_bucket\\{(.*)\\} (\\S+)$`, "gm"))) {
    const { le, ...others } = Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map((pair) => pair.slice(1)));
    const histogram = found.get(others[label]) ?? { bounds: [], counts: [] };
    histogram.bounds.push(le === "+Inf" ? Infinity : Number(le));
    histogram.counts.push(Number(value));
    found.set(others[label], histogram);
  }
  return found;
}

function merged(found) {
  const [first, ...others] = found.values();
  if (!first) return undefined;
  return { bounds: first.bounds, counts: first.counts.map((count, at) => count + sum(others.map((each) => each.counts[at]))) };
}

// The quantile of what was observed between two readings, interpolated as Prometheus does; null if nothing was.
function quantile(share, now, before) {
  if (!now) return null;
  const counts = now.counts.map((count, at) => count - (before?.counts[at] ?? 0));
  const rank = share * counts.at(-1);
  if (!(rank > 0)) return null;
  const at = counts.findIndex((count) => count >= rank);
  const [low, below] = at ? [now.bounds[at - 1], counts[at - 1]] : [0, 0];
  return now.bounds[at] === Infinity ? low : low + ((now.bounds[at] - low) * (rank - below)) / (counts[at] - below);
}

// One reading of both endpoints, kept for as long as a plot shows it.
function reading(status, metrics) {
  const saving = status.caches.filter((cache) => cache.key_type !== "public");
  return {
    at: status.uptime_seconds,
    rpcs: all(status.rpcs),
    refused: failed(status.rpcs),
    kmsCalls: all(status.kms_calls),
    kmsErrors: failed(status.kms_calls),
    hits: sum(saving.map((cache) => cache.hits)),
    misses: sum(saving.map((cache) => cache.misses)),
    warm: status.seconds_until_degraded,
    inFlight: Number(metrics.match(/^kms_rpc_in_flight (\S+)$/m)?.[1] ?? NaN),
    answers: merged(histograms(metrics, "kms_rpc_duration_seconds", "method")),
    operations: histograms(metrics, "kms_call_duration_seconds", "operation"),
  };
}

const rate = (now, before, name) => (before ? (now[name] - before[name]) / (now.at - before.at) : null);

const rounded = (number, digits = 0) =>
  number.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const count = (number) => (number == null ? NONE : rounded(number));
const plain = (number) => [count(number)];
const perSecond = (number) => (number == null ? [NONE] : [rounded(number, number < 10 ? 1 : 0), "/s"]);
const dollars = (number) => (number == null ? NONE : `$${rounded(number, 2)}`);
// Rounded down: 100.0 % means all.
const percent = (share) => (share == null ? [NONE] : [rounded(Math.floor(share * 1000) / 10, 1), "%"]);

function latency(seconds) {
  if (seconds == null) return [NONE];
  if (seconds >= 1) return [rounded(seconds, 2), "s"];
  const ms = seconds * 1000;
  return [rounded(ms, ms < 1 ? 2 : ms < 100 ? 1 : 0), "ms"];
}

function duration(seconds) {
  if (seconds == null) return [NONE];
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return [String(whole), "s"];
  if (whole < 3600) return [String(Math.floor(whole / 60)), "min"];
  if (whole < 86400) return [`${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)}`, "min"];
  return [`${rounded(Math.floor(whole / 86400))} d ${Math.floor((whole % 86400) / 3600)}`, "h"];
}

const text = ([number, unit]) => (unit ? `${number} ${unit}` : number);
const clock = (time) => new Date(time).toTimeString().slice(0, 8);
const date = (seconds) => `${new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;

// The page: reads status and metrics of the daemon that served it, every two seconds, and shows them.

const page = (id) => document.getElementById(id);

function element(name, content, level) {
  const made = document.createElement(name);
  made.append(content ?? NONE);
  if (level) made.dataset.level = level;
  return made;
}

const RATE = { show: perSecond };
const LATENCIES = { series: [["p50", "series-0"], ["p99", "series-1"]], show: latency, least: 0.001 };
const tiles = {
  rate: new Tile(page("calls"), "Calls", { ...RATE, series: [["all", "series-0"], ["failed", "series-bad"]] }),
  answers: new Tile(page("calls"), "Time to answer, last minute", LATENCIES),
  hits: new Tile(page("calls"), "Hit rate, last minute", { show: percent, round: () => 1 }),
  inFlight: new Tile(page("calls"), "Calls in flight", { show: plain }),
  kms: new Tile(page("calls"), "Calls to KMS", { ...RATE, series: [["all", "series-0"], ["failed", "series-bad"]] }),
  warm: new Tile(page("calls"), "Warm keys last, if KMS vanished", { show: duration, round: roundDuration, least: 60 }),
};
const operations = new Map();
const every = () => [...Object.values(tiles), ...operations.values()];
let readings = [];
let answeredAt;

function record(now) {
  if (readings.length && now.at < readings.at(-1).at) {
    readings = []; // the daemon was started again
    every().forEach((tile) => tile.clear());
  }
  const before = readings.at(-1);
  // A daemon that started less than a minute ago had counted nothing then.
  const minuteAgo = readings.at(-MINUTE) ?? (now.at < 60 ? undefined : readings[0]);
  readings = [...readings, now].slice(-MINUTE);
  const hits = now.hits - (minuteAgo?.hits ?? 0);
  const lookups = hits + now.misses - (minuteAgo?.misses ?? 0);
  tiles.rate.add([rate(now, before, "rpcs"), rate(now, before, "refused")]);
  tiles.answers.add([quantile(0.5, now.answers, minuteAgo?.answers), quantile(0.99, now.answers, minuteAgo?.answers)]);
  tiles.hits.add([lookups ? hits / lookups : null]);
  tiles.kms.add([rate(now, before, "kmsCalls"), rate(now, before, "kmsErrors")]);
  tiles.inFlight.add([now.inFlight]);
  tiles.warm.add([now.warm]);
  for (const [name, found] of now.operations) {
    if (!operations.has(name)) operations.set(name, new Tile(page("latency"), name, LATENCIES));
    const earlier = minuteAgo?.operations.get(name);
    operations.get(name).add([quantile(0.5, found, earlier), quantile(0.99, found, earlier)]);
  }
}

// What is wrong, worst first: [level, sentence].
function problems({ serving, kms, lock, shredding, audit, rotation, process }) {
  const found = [];
  if (lock) found.push(["bad", `Emergency stop since ${date(lock.since)}: ${lock.reason}`]);
  if (!serving) found.push(["bad", "The daemon takes no calls."]);
  if (!kms.usable) found.push([serving ? "warn" : "bad", `KMS cannot be used: ${kms.error}`]);
  if (audit?.error) found.push(["bad", `The audit trail cannot be written: ${audit.error}`]);
  if (shredding.failing) found.push(["bad", `${count(shredding.failing)} shreddings failed when they were last tried.`]);
  if (rotation.failures) found.push(["warn", `${count(rotation.failures)} signing keys could not be rotated since the start.`]);
  if (process?.root) found.push(["warn", "The daemon runs as root: give it a user of its own."]);
  return found;
}

function summary({ serving, kms, lock }) {
  if (lock) return ["bad", "Emergency stop"];
  if (!serving) return ["bad", "Not serving"];
  return kms.usable ? ["good", "Serving"] : ["warn", "Serving warm keys only"];
}

function say([level, words], notices) {
  page("state").replaceChildren(words);
  page("state").dataset.level = level;
  document.title = `${words} | betrace-kms`;
  const before = page("notices").textContent;
  const made = notices.map(([each, sentence]) => element("p", sentence, each));
  if (before !== made.map((notice) => notice.textContent).join("")) page("notices").replaceChildren(...made);
}

// Show rows of [term, text or element, level] as a description list.
function describe(id, rows) {
  page(id).replaceChildren(
    ...rows.flatMap(([term, value, level]) => {
      const described = element("dd", level ? element("span", value, level) : value);
      return [element("dt", term), described];
    }),
  );
}

function list(items) {
  const made = document.createElement("ul");
  made.append(...items);
  return made;
}

const LEVELS = { closed: "good", open: "bad", half_open: "warn" };

function showKms({ provider, kms }) {
  const breakers = Object.entries(kms.breakers).map(([region, state]) =>
    element("li", element("span", `${region} ${state.replace("_", " ")}`, LEVELS[state])),
  );
  describe("kms", [
    ["State", kms.usable ? "usable" : "unusable", kms.usable ? "good" : "bad"],
    ["Provider", provider],
    ["Master key", element("code", kms.master_key)],
    ["Region", kms.region],
    ["Last check", kms.checked_seconds_ago == null ? null : `${text(duration(kms.checked_seconds_ago))} ago, ${text(latency(kms.latency_ms == null ? null : kms.latency_ms / 1000))}`],
    ["Breakers", breakers.length ? list(breakers) : "none"],
  ]);
}

function bar(share) {
  const drawn = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  drawn.append(svg("rect", { class: "track", width: 100, height: 8 }), svg("rect", { width: Math.max(share * 100, 0.5), height: 8 }));
  return drawn;
}

function showCost({ cost, hit_rate }) {
  const highest = Math.max(cost.with_cache_dollars, cost.without_cache_dollars);
  const sums = [["With the cache", cost.with_cache_dollars], ["Without", cost.without_cache_dollars]];
  describe("cost", [
    ...sums.map(([term, value]) => {
      const both = element("div", dollars(value));
      both.append(bar(value / highest));
      return [term, both];
    }),
    ["Calls to KMS", `${count(cost.kms_calls_per_month)} a month`],
    ["Lookups", text(perSecond(cost.requests_per_second))],
    ["Hit rate", `${text(percent(hit_rate))} since the start`],
  ]);
}

function showCaches({ caches }) {
  page("caches").replaceChildren(
    ...caches.map((cache) => {
      const evictions = Object.entries(cache.evictions).filter(([, number]) => number);
      const row = document.createElement("tr");
      const name = element("th", cache.key_type);
      name.scope = "row";
      const numbers = [count(cache.size), count(cache.max_size), count(cache.hits), count(cache.misses), text(percent(cache.hit_rate)), text(duration(cache.ttl_seconds))];
      row.append(
        name,
        ...numbers.map((number) => Object.assign(element("td", number), { className: "number" })),
        element("td", evictions.map(([cause, number]) => `${count(number)} ${cause.replace("_", " ")}`).join(", ") || NONE),
      );
      return row;
    }),
  );
}

function showKeys({ store, rotation, audit, shredding }) {
  const trail = audit && (audit.error ? "cannot be written" : `${count(audit.written)} lines${audit.lost ? `, ${count(audit.lost)} lost` : ""}`);
  describe("keys", [
    ["Key store", store.kind],
    ["Rotation", rotation.last_run == null ? "no good run yet" : `last good run ${date(rotation.last_run)}`],
    ["Not rotated", count(rotation.failures), rotation.failures ? "warn" : "good"],
    ["Audit trail", trail ?? "off", audit ? (audit.error || audit.lost ? "bad" : "good") : "none"],
    ["Shreddings", `${count(shredding.pending)} pending, ${count(shredding.failing)} failing`, shredding.failing ? "bad" : "good"],
  ]);
}

function showAccess({ access, lock, process }) {
  const open = access?.unauthenticated ?? [];
  describe("access", [
    ["Emergency stop", lock ? "in force" : "none", lock ? "bad" : "good"],
    ["Callers", open.length ? list([element("span", "not authenticated at", "warn"), ...open.map((address) => element("li", element("code", address)))]) : "authenticated", open.length ? "" : "good"],
    ["User", process?.root ? "root" : "not root", process?.root ? "warn" : "good"],
    ["Memory", process?.dumpable ? "open to other processes of its user" : "closed to other processes", process?.dumpable ? "warn" : "good"],
  ]);
}

function show(status, metrics) {
  record(reading(status, metrics));
  answeredAt = Date.now();
  document.body.classList.remove("stale");
  document.querySelector("main").hidden = false;
  say(summary(status), problems(status));
  page("identity").textContent = `${status.version}, provider ${status.provider}, up ${text(duration(status.uptime_seconds))}`;
  for (const part of [showKms, showCost, showCaches, showKeys, showAccess]) part(status);
}

function lose(reason) {
  document.body.classList.add("stale");
  every().forEach((tile) => tile.add(null));
  const before = answeredAt ? `The daemon has not answered since ${clock(answeredAt)}: the figures are from then.` : "The daemon does not answer.";
  say(["bad", "No answer"], [["bad", `${before} ${reason}`]]);
}

async function get(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(2 * PERIOD_MS) });
  const body = await response.text();
  if (response.ok) return body;
  throw new Error(`${path} answers ${response.status}: ${body.slice(0, 200)}`);
}

async function refresh() {
  try {
    const [status, metrics] = await Promise.all([get("/api/admin/kms/status"), get("/q/metrics")]);
    show(JSON.parse(status), metrics);
  } catch (error) {
    lose(error.message.startsWith("/") ? error.message : "Is it still running?");
  }
  every().forEach((tile) => tile.draw());
  page("age").textContent = answeredAt ? `answered ${clock(answeredAt)}` : "";
  setTimeout(refresh, PERIOD_MS);
}

refresh();

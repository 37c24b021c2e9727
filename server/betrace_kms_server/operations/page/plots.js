// Plots of the last minutes, drawn as SVG: a line for each series, with gaps where there is nothing to show.

const WIDTH = 300;
const HEIGHT = 60;

const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

// A round number at or above the highest value, so that the scale does not move with each reading.
function ceiling(highest) {
  const power = 10 ** Math.floor(Math.log10(highest));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= highest * (1 - 1e-9));
}

// The same for seconds that are shown as minutes, hours or days.
const roundDuration = (highest) =>
  [60, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600].find((step) => step >= highest) ?? 86400 * ceiling(highest / 86400);

function paths(values, top) {
  const x = (at) => ((at + HISTORY - values.length) * WIDTH) / (HISTORY - 1);
  const y = (value) => HEIGHT - 1 - (value / top) * (HEIGHT - 3);
  const runs = [];
  values.forEach((value, at) => {
    if (value == null) return;
    if (!at || values[at - 1] == null) runs.push([]);
    runs.at(-1).push([x(at).toFixed(1), y(value).toFixed(1)]);
  });
  const line = runs.map((run) => `M${run.map((point) => point.join(" ")).join("L")}${run.length > 1 ? "" : "h.1"}`);
  const area = runs.map((run) => `M${run[0][0]} ${HEIGHT}L${run.map((point) => point.join(" ")).join("L")}L${run.at(-1)[0]} ${HEIGHT}Z`);
  return { line: line.join(""), area: area.join("") };
}

class Tile {
  // `series` is [[name, style], ...]; `show` turns a value into [number, unit]; the scale ends at what `round` returns
  // for the highest value, which is `least` or more.
  constructor(parent, title, { series = [["", "series-0"]], show, round = ceiling, least = 1 }) {
    Object.assign(this, { title, series, show, round, least, latest: [], history: series.map(() => []) });
    const figure = document.getElementById("tile").content.cloneNode(true).firstElementChild;
    figure.querySelector("figcaption").textContent = title;
    this.parts = Object.fromEntries(["value", "scale", "legend"].map((name) => [name, figure.querySelector(`.${name}`)]));
    this.parts.plot = figure.querySelector("svg");
    parent.append(figure);
  }

  // Without values there is a gap, and the latest ones stay.
  add(values) {
    this.latest = values ?? this.latest;
    this.history.forEach((kept, at) => {
      kept.push(values?.[at] ?? null);
      if (kept.length > HISTORY) kept.shift();
    });
  }

  clear() {
    this.history = this.history.map(() => []);
  }

  draw() {
    const { value, scale, legend, plot } = this.parts;
    const top = this.round(Math.max(this.least, ...this.history.flat().filter((each) => each != null)));
    const [number, unit] = this.show(this.latest[0]);
    value.replaceChildren(number, ...(unit ? [element("small", unit)] : []));
    plot.replaceChildren(
      ...this.history.flatMap((kept, at) => {
        const style = this.series[at][1];
        const { line, area } = paths(style === "series-bad" ? kept.map((each) => each || null) : kept, top);
        return [...(at ? [] : [svg("path", { class: `area ${style}`, d: area })]), svg("path", { class: style, d: line })];
      }),
    );
    const [highest, unitOfScale] = this.show(top);
    const range = `0 to ${text([highest.replace(/\.0+$/, ""), unitOfScale])}`;
    const period = `last ${text(duration((HISTORY * PERIOD_MS) / 1000))}`;
    plot.setAttribute("aria-label", `${this.title}: now ${text([number, unit])}, scale ${range}, ${period}`);
    scale.firstElementChild.textContent = range;
    scale.lastElementChild.textContent = period;
    if (this.series.length > 1)
      legend.replaceChildren(
        ...this.series.map(([name, style], at) => {
          const item = element("li", `${name} ${text(this.show(this.latest[at]))}`);
          item.className = style;
          return item;
        }),
      );
  }
}

// Time series by uPlot. The data stands in the element's attributes; a refresh changes those, and the chart follows
// without being built again, so that nothing flickers and a cursor stays where it is.
"use strict";

(() => {
  const charts = new Map(); // element → {plot, look}
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");

  // -- numbers with units ------------------------------------------------------------------------------------------
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(3)));
  };
  const scaled = (value, steps) => {
    const [size, unit] = steps.find(([step]) => Math.abs(value) >= step) ?? steps[steps.length - 1];
    return `${short(value / size)} ${unit}`;
  };
  const FORMATS = {
    us: (value) => scaled(value, [[1e6, "s"], [1e3, "ms"], [1, "µs"]]),
    B: (value) => scaled(value, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]),
    "%": (value) => `${short(value)} %`,
    "°C": (value) => `${short(value)} °C`,
    "/s": (value) => `${short(value)}/s`,
  };
  const format = (unit, value) => (value == null ? "–" : (FORMATS[unit] ?? short)(value));

  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function axes(unit) {
    const grid = { stroke: token("grid"), width: 1 };
    const common = { stroke: token("text-2"), font: `11px ${token("font")}`, ticks: { show: false } };
    return [
      { ...common, grid: { show: false }, space: 70, size: 26, values: "{HH}:{mm}",
        values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: ticks.length > 1 && ticks[1] - ticks[0] < 60 ? "2-digit" : undefined, hour12: false })) },
      { ...common, grid, size: 62, space: 34, values: (_, ticks) => ticks.map((value) => format(unit, value)) },
    ];
  }

  function range(unit) {
    return (_, low, high) => {
      if (low == null) return [0, 1];
      if (unit === "°C") return [Math.floor(low - 2), Math.ceil(high + 2)];
      if (unit === "%") return [0, Math.max(100, high)];
      return [0, high > 0 ? high * 1.12 : 1];
    };
  }

  function tooltip(element, labels, unit) {
    const box = document.createElement("div");
    box.className = "chart-tip";
    box.hidden = true;
    const update = (plot) => {
      const { idx, left } = plot.cursor;
      if (idx == null || left < 0 || plot.data[0][idx] == null) {
        box.hidden = true;
        return;
      }
      const lines = [Object.assign(document.createElement("b"), { textContent: new Date(plot.data[0][idx] * 1000).toLocaleTimeString([], { hour12: false }) })];
      labels.forEach(([name, color], place) => {
        const line = document.createElement("span");
        const mark = document.createElement("i");
        mark.className = `mark ${color}`;
        line.append(mark, `${name} `, Object.assign(document.createElement("b"), { textContent: format(unit, plot.data[place + 1][idx]) }));
        lines.push(line);
      });
      box.replaceChildren(...lines);
      box.hidden = false;
      const width = plot.over.clientWidth;
      box.style.left = `${Math.min(Math.max(0, left - box.offsetWidth / 2), Math.max(0, width - box.offsetWidth))}px`;
    };
    return { hooks: { init: [(plot) => plot.over.append(box)], setCursor: [update], setData: [update] } };
  }

  function now(element, labels, unit, data) {
    const place = document.getElementById(`${element.id}-now`);
    if (!place) return;
    place.replaceChildren(...labels.map(([name, color], index) => {
      const values = data[index + 1];
      let last = null;
      for (let at = values.length - 1; at >= 0 && last == null; at--) last = values[at];
      const line = document.createElement("span");
      const mark = document.createElement("i");
      mark.className = `mark ${color}`;
      line.append(mark, `${name} `, Object.assign(document.createElement("b"), { textContent: format(unit, last) }));
      return line;
    }));
  }

  // A value between two gaps is no line: it shows as a point.
  function lonely(values) {
    const places = [];
    for (let at = 0; at < values.length; at++) {
      if (values[at] != null && values[at - 1] == null && values[at + 1] == null) places.push(at);
    }
    return places;
  }

  function build(element) {
    const { unit, kind } = element.dataset;
    const labels = JSON.parse(element.dataset.labels);
    const data = JSON.parse(element.dataset.series);
    const series = labels.map(([name, color], index) => ({
      label: name, stroke: token(color), width: 1.6, points: { show: true, size: 5, filter: (plot, place) => lonely(plot.data[place]) },
      fill: kind === "area" && index === 0 ? token(`${color}-fill`) : undefined, spanGaps: false,
    }));
    const plot = new uPlot({
      width: Math.max(120, element.clientWidth), height: element.clientHeight || 180,
      legend: { show: false }, padding: [8, 16, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 }, sync: { key: "skerry" } },
      scales: { x: { time: true }, y: { range: range(unit) } },
      series: [{}, ...series], axes: axes(unit), plugins: [tooltip(element, labels, unit)],
    }, data, element);
    charts.set(element, { plot, series: element.dataset.series });
    now(element, labels, unit, data);
  }

  function refresh() {
    for (const [element, chart] of charts) {
      if (!element.isConnected) {
        chart.plot.destroy();
        charts.delete(element);
      }
    }
    for (const element of document.querySelectorAll(".plot[data-series]")) {
      const chart = charts.get(element);
      if (!chart) {
        build(element);
      } else {
        if (chart.series !== element.dataset.series) {
          chart.series = element.dataset.series;
          chart.plot.setData(JSON.parse(chart.series));
        }
        now(element, JSON.parse(element.dataset.labels), element.dataset.unit, chart.plot.data);
      }
    }
  }

  function rebuild() {
    for (const { plot } of charts.values()) plot.destroy();
    charts.clear();
    refresh();
  }

  let pending = 0;
  const resize = new ResizeObserver((entries) => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => {
      for (const { target } of entries) {
        const chart = charts.get(target);
        if (chart && Math.abs(chart.plot.width - target.clientWidth) > 1) {
          chart.plot.setSize({ width: Math.max(120, target.clientWidth), height: target.clientHeight || 180 });
        }
      }
    });
  });
  const watch = () => {
    refresh();
    for (const element of charts.keys()) resize.observe(element);
  };

  document.addEventListener("DOMContentLoaded", watch);
  document.addEventListener("htmx:after:settle", watch);
  document.addEventListener("theme", rebuild);
  reduced.addEventListener?.("change", rebuild);
})();

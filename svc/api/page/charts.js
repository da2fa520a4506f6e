// The charts: one drawing for each series of figures that the event `charts` holds.

import { $, number, write } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 360;
const HEIGHT = 96;

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function nice(peak) {
  // A round number at or above the peak, so that the scale does not jump with every sample.
  if (peak <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(peak));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= peak);
}

function drawChart(name, charts, { bars = false, now, peak, summary }) {
  const figure = $(`chart-${name}`);
  const values = charts[name];
  const top = nice(Math.max(0, ...values));
  const x = (ago) => (WIDTH * (1 - ago / charts.span)).toFixed(1);
  const y = (value) => (HEIGHT - (HEIGHT - 4) * (value / top)).toFixed(1);
  const parts = [shape("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT })];
  if (bars) {
    const width = Math.max(2, (WIDTH * charts.every) / charts.span);
    values.forEach((value, index) => {
      if (!value) return;
      const left = Math.max(0, x(charts.ago[index]) - width);
      parts.push(shape("rect", { class: "stem", x: left, y: y(value), width, height: HEIGHT - y(value) }));
    });
  } else if (values.length) {
    const points = values.map((value, index) => `${x(charts.ago[index])} ${y(value)}`);
    const first = x(charts.ago[0]);
    const last = x(charts.ago[values.length - 1]);
    parts.push(shape("path", { class: "area", d: `M${first} ${HEIGHT}L${points.join("L")}L${last} ${HEIGHT}Z` }));
    parts.push(shape("path", { class: "curve", d: `M${points.join("L")}` }));
  }
  const drawing = figure.querySelector("svg");
  drawing.replaceChildren(...parts);
  drawing.setAttribute("aria-label", summary);
  write(figure.querySelector(".now"), now);
  write(figure.querySelector(".peak"), peak(top));
  write(figure.querySelector(".from"), `${Math.round(charts.span / 60)} min ago`);
}

export function showCharts(charts) {
  const last = (values) => values[values.length - 1] ?? 0;
  const minutes = Math.round(charts.span / 60);
  const rate = last(charts.processed);
  const fails = charts.failed.reduce((sum, value) => sum + value, 0);
  const held = last(charts.in_flight);
  drawChart("processed", charts, {
    now: `${number(rate)} / s`, peak: (top) => `scale ${number(top)} / s`,
    summary: `Messages processed per second, last ${minutes} minutes: now ${number(rate)}, at most ${number(Math.max(0, ...charts.processed))}.`,
  });
  drawChart("failed", charts, {
    bars: true, now: number(fails), peak: (top) => `scale ${number(top)} in ${charts.every} s`,
    summary: `Messages failed, rejected or lost, last ${minutes} minutes: ${number(fails)}.`,
  });
  drawChart("in_flight", charts, {
    now: number(held), peak: (top) => `scale ${number(top)}`,
    summary: `Messages in flight, last ${minutes} minutes: now ${number(held)}, at most ${number(Math.max(0, ...charts.in_flight))}.`,
  });
}

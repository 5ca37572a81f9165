"use strict";
// Draw the pictures of the page: each is data that `drawing.py` made. A picture is drawn anew, by Plotly.react, whenever
// a switch, its slider or its width changes; pictures out of sight are drawn when nothing else is to be done.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const INK = "#1a1a1a", GREY = "#777777", RULE = "#e6e6e6", PAPER = 680, TALLEST = 940, NARROW = 600;
  const UNRESOLVED = 7, MOST_DOTS = 40;
  const CONFIG = {
    displaylogo: false,
    // Named one by one: the usual set has a button that sends the figure to a service.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    showSendToCloud: false,
    toImageButtonOptions: { format: "svg", filename: "ibscan" },
  };
  const on = { layers: new Set(page.layers), runs: new Set(page.runs.map((_, k) => k)) };
  let printing = false;

  // Plotly reads tags in text; names from files have none.
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const number = (value) => (value === null ? "" : String(Number(value.toPrecision(4))));
  const fitted = (text, room) => {
    if (text.length <= room) return text;
    const head = Math.max(1, Math.floor((room - 1) / 3));
    return `${text.slice(0, head)}…${text.slice(-Math.max(1, room - 1 - head))}`;
  };
  const faded = (colour, alpha) =>
    `rgba(${[1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16)).join(",")},${alpha})`;
  const known = (values) => values.filter((value) => value !== null);
  // Not by Math.max(...values): of many values that is too many arguments.
  const extent = (values) => values.reduce(([least, most], v) => [Math.min(least, v), Math.max(most, v)], [Infinity, -Infinity]);

  // ---- What is told of a point.

  const joined = (...parts) => parts.filter((part) => part !== "").join(" ");
  const placed = (axis, value) => joined(axis.name, axis.names.length ? axis.names[value] : number(value), axis.unit);

  const checkpoint = (picture, place) => `${page.axis} ${picture.places.find(([at]) => at === place)[1]}`;

  function valueOf(told, i) {
    const half = told.half ? told.half[i] : null;
    const error = half === null ? "" : `± ${number(half)}`;
    const unit = told.unit && told.unit !== "1" ? told.unit : "";
    return joined(told.name, number(told.values[i]), error, unit, half === null ? "" : `(${page.band})`);
  }

  function hover(picture, panel, curve, i) {
    const run = page.runs.length > 1 ? page.runs[curve.run] : "";
    const title = panel.layer || curve.told || !panel.y.name ? "" : panel.title;
    const where = curve.at ? checkpoint(picture, curve.at[i]) : placed(picture.x, curve.x[i]);
    const plain = { name: panel.y.name || panel.title, values: curve.y, half: curve.half, unit: panel.y.unit };
    const values = (curve.told || [plain]).map((told) => valueOf(told, i));
    const opened = curve.low && curve.low[i] !== null;
    const bracket = opened ? `bracket ${number(curve.low[i])} to ${number(curve.high[i])}` : "";
    const status = curve.status ? page.statuses[curve.status[i]] : "";
    const lines = [run, title, curve.what, where, ...values, bracket, status].filter((line) => line);
    return [`<b>${safe(curve.layer)}</b>`, ...lines.map(safe)].join("<br>");
  }

  // ---- Places on an axis: one with zero is logarithmic from its first positive number.

  function scaleOf(picture) {
    const every = picture.panels.flatMap((p) => curvesOf(p, null).flatMap((curve) => known(curve.x)));
    const positive = every.filter((value) => value > 0);
    const [first, last] = extent(positive), [least, most] = extent(every);
    const zero = picture.x.scale === "symlog" && positive.length > 0;
    const positiveAt = (v) => (v < first ? (0.4 * v) / first : 0.4 + Math.log10(v / first));
    const at = (v) => (v === null || !zero ? v : v <= 0 ? 0 : positiveAt(v));
    // Frames of a panel share its range.
    const ends = new Map(picture.panels.filter((p) => p.frames).map((p) =>
      [p, extent(curvesOf(p, null).flatMap((curve) => known(curve.x)))[1]]));
    return { zero, first, last, at, least, most, ends };
  }

  function powers(first, last) {
    const found = [];
    for (let k = Math.ceil(Math.log10(first) - 1e-9); k <= Math.floor(Math.log10(last) + 1e-9); k += 1) found.push(10 ** k);
    return found.length > 1 ? found : [...new Set([first, ...found, last])];
  }

  const tick = (value) =>
    value !== 0 && (value < 0.9e-3 || value >= 1e5) && Number.isInteger(Math.round(Math.log10(value) * 1e9) / 1e9)
      ? `10<sup>${Math.round(Math.log10(value))}</sup>` : number(value);

  function xTicks(picture, scale, room) {
    const names = picture.x.names;
    if (names.length) {
      const step = Math.ceil(names.length / Math.max(2, Math.floor(room / 70)));
      const shown = names.map((_, k) => k).filter((k) => k % step === 0);
      const end = names[0].slice(names[0].lastIndexOf(".")), alike = names.every((name) => name.endsWith(end) && name !== end);
      const text = (k) => safe(fitted(alike ? names[k].slice(0, -end.length) : names[k], 16));
      return { tickmode: "array", tickvals: shown, ticktext: shown.map(text), tickangle: -30 };
    }
    if (!scale.zero && picture.x.scale !== "log") return { nticks: 6 };
    const ticks = [...(scale.zero ? [0] : []), ...powers(scale.first, scale.last)];
    if (!scale.zero) return { type: "log", tickmode: "array", tickvals: ticks, ticktext: ticks.map(tick) };
    const minor = ticks.slice(1).flatMap((t) => [2, 3, 4, 5, 6, 7, 8, 9].map((k) => k * t)).filter((v) => v <= scale.last);
    const end = scale.at(scale.last);
    return {
      tickmode: "array", tickvals: ticks.map(scale.at), ticktext: ticks.map(tick),
      minor: { tickmode: "array", tickvals: minor.map(scale.at), ticks: "outside", ticklen: 2 },
      range: [-0.04 * end, 1.03 * end],
    };
  }

  // ---- From a curve to traces.

  // Runs of neighbours that have a number, as pairs of first and last index.
  function pieces(values) {
    const found = [];
    values.forEach((value, i) => {
      if (value === null) return;
      if (i > 0 && values[i - 1] !== null) found[found.length - 1][1] = i;
      else found.push([i, i]);
    });
    return found;
  }

  function lineTraces(picture, panel, curve, scale, base) {
    const codes = curve.status || curve.y.map(() => 0), x = curve.x.map(scale.at);
    const y = curve.y.map((value, i) => (codes[i] === UNRESOLVED ? null : value));
    const half = curve.half || curve.y.map(() => null);
    const parts = pieces(y), band = { x: [], y: [] }, bars = { x: [], y: [], half: [] };
    for (const [from, to] of curve.half ? parts : []) {
      const there = Array.from({ length: to - from + 1 }, (_, k) => from + k), back = [...there].reverse();
      if (from === to) {
        if (half[from] !== null) (bars.x.push(x[from]), bars.y.push(y[from]), bars.half.push(half[from]));
        continue;
      }
      band.x.push(...there.map((i) => x[i]), ...back.map((i) => x[i]), null);
      band.y.push(...there.map((i) => y[i] + (half[i] || 0)), ...back.map((i) => y[i] - (half[i] || 0)), null);
    }
    (curve.low || []).forEach((low, i) => {
      if (low === null) return;
      (bars.x.push(x[i]), bars.y.push((low + curve.high[i]) / 2), bars.half.push((curve.high[i] - low) / 2));
    });
    const colour = curve.colour, marks = codes.map((code) => page.marks[code]);
    const dots = curve.y.length <= MOST_DOTS ? 5 : 2.5;
    const silent = { ...base, hoverinfo: "skip", showlegend: false };
    const traces = [];
    if (band.x.length)
      traces.push({ ...silent, ...band, mode: "lines", fill: "toself", fillcolor: faded(colour, 0.2), line: { width: 0 } });
    if (bars.x.length)
      traces.push({ ...silent, x: bars.x, y: bars.y, mode: "markers", marker: { opacity: 0, color: colour },
        error_y: { type: "data", array: bars.half, color: colour, thickness: 1.2, width: 4 } });
    traces.push({ ...base, x, y, mode: "lines", line: { color: colour, width: 1.8, dash: dash(curve) }, hoverinfo: "skip" });
    traces.push({ ...silent, x, y: curve.y, mode: "markers", hoverinfo: "text",
      hovertext: curve.y.map((value, i) => (value === null ? "" : hover(picture, panel, curve, i))),
      marker: { color: marks.map((m) => (m ? "#ffffff" : colour)), symbol: marks.map((m) => m || "circle"), opacity: 1,
        size: marks.map((m) => (m ? 8 : dots)), line: { color: colour, width: marks.map((m) => (m ? 1.4 : 0)) } } });
    return traces;
  }

  function tintedTraces(picture, panel, curve, scale, base, place) {
    const codes = curve.status || curve.y.map(() => 0), x = curve.x.map(scale.at);
    const until = curve.y.map((_, i) => !curve.at || place === null || curve.at[i] <= place);
    const last = curve.at && place !== null ? until.lastIndexOf(true) : -1;
    const symbol = page.markers[curve.mark % page.markers.length];
    const marker = {
      color: curve.tint, cmin: 0, cmax: 1, colorscale: page.map.map((c, k) => [k / (page.map.length - 1), c]),
      symbol: codes.map((code) => (page.marks[code] ? `${symbol}-open` : symbol)),
      opacity: until.map((shown) => (shown ? 1 : 0.12)), size: until.map((_, i) => (i === last ? 14 : 8)),
      line: { color: until.map(() => INK), width: until.map((_, i) => (i === last ? 1.6 : 0)) },
    };
    // An open marker is drawn by its line: that keeps the colour of its place.
    codes.forEach((code, i) => {
      if (!page.marks[code]) return;
      marker.line.color[i] = curve.tint[i] === null ? GREY : mixed(curve.tint[i]);
      marker.line.width[i] = i === last ? 3 : 1.6;
    });
    const path = curve.y.map((value, i) => (codes[i] === UNRESOLVED || !until[i] ? null : value));
    return [
      { ...base, x, y: path, mode: "lines", line: { color: "#b5b5b5", width: 1, dash: dash(curve) }, hoverinfo: "skip" },
      { ...base, x, y: curve.y, mode: "markers", marker, hoverinfo: "text", customdata: until.map(Number),
        hovertext: curve.y.map((value, i) => (value === null ? "" : hover(picture, panel, curve, i))) },
    ];
  }

  function mixed(fraction) {
    const at = Math.min(Math.max(fraction, 0), 1) * (page.map.length - 1);
    const left = Math.min(Math.floor(at), page.map.length - 2);
    const [a, b] = [left, left + 1].map((place) => [1, 3, 5].map((k) => parseInt(page.map[place].slice(k, k + 2), 16)));
    return `rgb(${a.map((part, k) => Math.round(part + (b[k] - part) * (at - left))).join(",")})`;
  }

  function histogram(picture, panel, curve, base, place) {
    const unit = picture.x.unit, name = panel.y.name;
    const run = page.runs.length > 1 ? page.runs[curve.run] : "";
    const text = curve.y.map((value, i) => {
      const bin = joined(picture.x.name, `${number(curve.x[i])} to ${number(curve.x[i + 1])}`, unit);
      const lines = [run, curve.what, checkpoint(picture, place), bin, `${name} ${number(value)}`].filter((line) => line);
      return [`<b>${safe(curve.layer)}</b>`, ...lines.map(safe)].join("<br>");
    });
    return [{ ...base, x: curve.x, y: [...curve.y, curve.y[curve.y.length - 1]], mode: "lines", fill: "tozeroy",
      fillcolor: faded(curve.colour, 0.25), line: { shape: "hv", color: curve.colour, width: 1.3 },
      hoverinfo: "text", hovertext: [...text, text[text.length - 1]] }];
  }

  const dash = (curve) => page.dashes[curve.run % page.dashes.length];

  // ---- From a picture to a figure.

  // The curves of a panel; of one with frames those of the last frame up to a place, of every frame without a place.
  function curvesOf(panel, place) {
    if (!panel.frames) return panel.curves;
    if (place === null) return panel.frames.flatMap((frame) => frame.curves);
    const until = panel.frames.filter((frame) => frame.place <= place);
    return (until.length ? until[until.length - 1] : panel.frames[0]).curves;
  }

  const isOn = (curve) => on.layers.has(curve.layer) && on.runs.has(curve.run);

  function tracesOf(item, panels, scale) {
    const { picture } = item, seen = new Set(), traces = [];
    panels.forEach((panel, k) => {
      const axes = { type: "scatter", xaxis: k ? `x${k + 1}` : "x", yaxis: k ? `y${k + 1}` : "y" };
      const base = (key) => {
        const first = !seen.has(key);
        seen.add(key);
        return { ...axes, name: safe(fitted(key, 30)), legendgroup: safe(key), showlegend: first };
      };
      const curves = curvesOf(panel, item.place).filter(isOn);
      const ends = [scale.least, scale.most].map(scale.at);
      for (const level of panel.levels)
        traces.push({ ...axes, x: ends, y: [level.y, level.y], mode: "lines", showlegend: false, hoverinfo: "text",
          line: { color: GREY, width: 1, dash: "dash" }, hovertext: safe(joined(level.label, number(level.y), panel.y.unit)) });
      for (const cap of panel.caps.filter(isOn))
        traces.push({ ...axes, x: cap.x.map(scale.at), y: cap.y, mode: "lines", showlegend: false, legendgroup: safe(cap.layer),
          line: { color: cap.colour, width: 1.2, dash: "dot" }, hoverinfo: "text",
          hovertext: cap.y.map((v) => safe(joined(cap.layer, "cap", number(v), panel.y.unit))) });
      for (const curve of curves) {
        const own = base(curve.legend);
        if (curve.steps) traces.push(...histogram(picture, panel, curve, own, item.place));
        else if (curve.tint) traces.push(...tintedTraces(picture, panel, curve, scale, { ...own, showlegend: false }, item.place));
        else traces.push(...lineTraces(picture, panel, curve, scale, own));
      }
    });
    // A legend tells apart: of one thing it says nothing.
    if (seen.size < 2) traces.forEach((trace) => (trace.showlegend = false));
    if (picture.places.length && picture.scale)
      for (const [key, mark] of new Map(panels.flatMap((p) => curvesOf(p, item.place).filter(isOn).map((c) => [c.legend, c.mark]))))
        traces.push({ type: "scatter", x: [null], y: [null], mode: "markers", name: safe(fitted(key, 30)), legendgroup: safe(key),
          hoverinfo: "skip", marker: { symbol: page.markers[mark % page.markers.length], color: GREY, size: 9 } });
    if (picture.scale && traces.length) {
      const { label, at, labels } = picture.scale;
      traces.push({ type: "scatter", x: [null], y: [null], mode: "markers", showlegend: false, hoverinfo: "skip", marker: {
        color: [0], cmin: 0, cmax: 1, showscale: true, colorscale: page.map.map((c, k) => [k / (page.map.length - 1), c]),
        colorbar: { title: { text: safe(fitted(label, 40)), side: "right", font: { size: 12 } }, thickness: 10, outlinewidth: 0,
          tickvals: at, ticktext: labels.map(safe), x: 1, xpad: 8, lenmode: "pixels", len: 190, y: 1, yanchor: "top", ypad: 24 } } });
    }
    return traces;
  }

  // The axis of panels that share it: their range is said, as Plotly does not find that of axes that match.
  function yAxis(panels, curves) {
    const levels = panels.flatMap((panel) => panel.levels.map((level) => level.y));
    const reach = (curve, sign) => curve.y.map((v, i) => (v === null ? null : v + sign * ((curve.half && curve.half[i]) || 0)));
    const values = known(curves.flatMap((c) => [...reach(c, -1), ...reach(c, 1), ...(c.low || []), ...(c.high || [])])).concat(levels);
    const [least, most] = extent(values), axis = { exponentformat: "power", nticks: 6 };
    if (panels[0].y.scale === "log") return { ...axis, type: "log", tickfont: { size: 10 } };
    if (curves.some((curve) => curve.steps)) return { ...axis, rangemode: "tozero", showticklabels: false, ticks: "" };
    if (!values.length || Math.max(-least, most) < 1e-12) return { ...axis, range: [-0.05, 1] };
    const from = least >= -1e-9 * most && least <= 0.5 * most ? 0 : least, room = 0.05 * (most - from || Math.abs(most));
    return { ...axis, range: [from - (from === 0 ? 0.4 : 1) * room, most + room] };
  }

  function layoutOf(item, panels, scale, width, traces) {
    const { picture } = item, count = panels.length, right = picture.scale ? 84 : 4;
    const names = [...new Set(traces.filter((t) => t.showlegend).map((t) => t.name))];
    const longest = Math.max(1, ...names.map((name) => name.length)), buttons = width < NARROW ? 0 : 110;
    const across = Math.max(1, Math.floor((width - buttons) / (50 + 7 * longest)));
    const legend = names.length ? 10 + 20 * Math.ceil(names.length / across) : 6;
    let most = Math.min(count, Math.max(1, Math.floor((width - right) / (printing ? 215 : 300))), 4), rows, columns, cell, high;
    const arrange = () => {
      rows = Math.ceil(count / most);
      columns = Math.ceil(count / rows);
      cell = (width - right) / columns;
      high = Math.round(Math.min(Math.max(cell * 0.66, 185), columns === 1 ? 380 : 290));
    };
    arrange();
    while (printing && legend + rows * high > TALLEST && most < 4) { most += 1; arrange(); }
    const tall = rows * high, inner = width - right, below = picture.x.names.length ? 84 : 46;
    const layout = {
      width, height: tall + legend, margin: { l: 0, r: right, t: legend, b: 0, pad: 0 }, autosize: false,
      hovermode: "closest", paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", dragmode: "zoom",
      font: { family: 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif', size: 12, color: INK },
      hoverlabel: { align: "left", bgcolor: "#ffffff", bordercolor: GREY, font: { color: INK, size: 13 }, namelength: -1 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "bottom", itemsizing: "constant", tracegroupgap: 0 },
      annotations: [], uirevision: panels.map((panel) => picture.panels.indexOf(panel)).join(),
    };
    panels.forEach((panel, k) => {
      const [row, column, suffix] = [Math.floor(k / columns), k % columns, k ? k + 1 : ""];
      const bottom = k + columns >= count;
      const line = { zeroline: false, showline: true, linecolor: "#9a9a9a", gridcolor: RULE,
        ticks: "outside", ticklen: 4, tickcolor: "#9a9a9a" };
      const title = (text, room) => ({ text: safe(fitted(text, room)), standoff: 4, font: { size: 12 } });
      const alike = picture.shareY ? panels : [panel];
      const shared = alike.flatMap((other) => curvesOf(other, item.place).filter(isOn));
      const edges = panel.frames ? { range: [0, scale.ends.get(panel)] } : {};
      layout[`xaxis${suffix}`] = { ...line, ...xTicks(picture, scale, cell - 72), ...edges, anchor: `y${suffix}`,
        domain: [(column * cell + 60) / inner, ((column + 1) * cell - 12) / inner],
        title: title(bottom ? picture.x.label : "", cell / 7), matches: picture.shareX && k ? "x" : undefined };
      layout[`yaxis${suffix}`] = { ...line, ...yAxis(alike, shared), anchor: `x${suffix}`,
        domain: [1 - (row * high + high - below) / tall, 1 - (row * high + 26) / tall],
        title: title(panel.y.label, high / 8), matches: picture.shareY && k ? "y" : undefined };
      layout.annotations.push({ xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom",
        yshift: 2, showarrow: false, font: { size: printing ? 10.5 : 12.5, weight: 600 },
        text: safe(fitted(panel.title, Math.floor(printing ? (cell - 30) / 5.8 : (cell - 60) / 6.6))) });
    });
    return layout;
  }

  function draw(item) {
    item.dirty = false;
    const panels = item.picture.panels.filter((panel) => curvesOf(panel, item.place).some(isOn));
    const width = printing ? PAPER : Math.max(240, Math.floor(item.canvas.clientWidth));
    item.width = width;
    if (!panels.length) {
      Plotly.purge(item.canvas);
      item.canvas.textContent = "Nothing that this figure shows is switched on.";
      return;
    }
    if (!item.canvas.classList.contains("js-plotly-plot")) item.canvas.textContent = "";
    item.scale = item.scale || scaleOf(item.picture);
    const scale = item.scale, traces = tracesOf(item, panels, scale);
    item.canvas.style.minHeight = "0";
    const config = { ...CONFIG, displayModeBar: width < NARROW ? false : "hover" };
    Plotly.react(item.canvas, traces, layoutOf(item, panels, scale, width, traces), config);
  }

  // ---- What is drawn when.

  const items = [...document.querySelectorAll("figure")].map((figure) => {
    const picture = page.pictures[Number(figure.dataset.picture)], last = picture.places.length - 1;
    return { figure, picture, canvas: figure.querySelector(".canvas"), slider: figure.querySelector("input[type=range]"),
      output: figure.querySelector("output"), place: last < 0 ? null : picture.places[last][0], dirty: true, near: false, width: 0 };
  });

  let waiting = false;
  function work() {
    waiting = false;
    const next = items.find((item) => item.dirty && item.near) || items.find((item) => item.dirty);
    if (!next) {
      document.documentElement.dataset.drawn = "all";
      return;
    }
    draw(next);
    later();
  }
  function later() {
    if (waiting) return;
    waiting = true;
    document.documentElement.dataset.drawn = "some";
    // Pauses let the page answer while those out of sight are drawn.
    setTimeout(work, items.some((item) => item.dirty && item.near) ? 0 : 30);
  }
  function renew(changed) {
    changed.forEach((item) => (item.dirty = true));
    later();
  }

  // One place for all sliders: each shows the last of its own places up to it.
  function slide(place) {
    const moved = items.filter((item) => item.slider);
    for (const item of moved) {
      const places = item.picture.places, k = Math.max(0, places.filter(([at]) => at <= place).length - 1);
      item.place = places[k][0];
      item.slider.value = String(k);
      item.output.textContent = places[k][1];
      item.slider.setAttribute("aria-valuetext", `${page.axis} ${places[k][1]}`);
    }
    renew(moved);
  }

  for (const item of items.filter((one) => one.slider))
    item.slider.addEventListener("input", () => slide(item.picture.places[Number(item.slider.value)][0]));

  const values = { layers: page.layers, runs: page.runs.map((_, k) => k) };
  const boxes = [...document.querySelectorAll("[data-switch]")];
  function switched() {
    for (const name of ["layers", "runs"]) {
      const own = boxes.filter((box) => box.dataset.switch === name);
      if (own.length) on[name] = new Set(own.filter((box) => box.checked).map((box) => values[name][Number(box.value)]));
    }
    renew(items);
  }
  boxes.forEach((box) => box.addEventListener("change", switched));
  for (const button of document.querySelectorAll("#switches button"))
    button.addEventListener("click", () => {
      boxes.filter((box) => box.dataset.switch === "layers").forEach((box) => (box.checked = "all" in button.dataset));
      switched();
    });

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) items.find((item) => item.figure === entry.target).near = entry.isIntersecting;
    later();
  }, { rootMargin: "300px" });
  items.forEach((item) => seen.observe(item.figure));
  // The width at which a figure was drawn is that of the page then; whoever turns a phone has another.
  new ResizeObserver(() => {
    if (!printing) renew(items.filter((item) => item.width && Math.floor(item.canvas.clientWidth) !== item.width));
  }).observe(document.querySelector("main"));

  window.addEventListener("beforeprint", () => {
    printing = true;
    items.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    renew(items);
  });

  slide(Math.max(...items.map((item) => (item.place === null ? -Infinity : item.place))));
  later();
})();

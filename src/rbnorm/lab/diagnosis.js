// Draws the page of a diagnosis from the JSON in it.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const layers = data.layers;
const byId = (id) => document.getElementById(id);
const style = getComputedStyle(document.documentElement);
const ink = style.getPropertyValue("--ink").trim();
const line = style.getPropertyValue("--line").trim();
const BLUE = "#0072b2", ORANGE = "#d55e00", GREY = "#8a8a8a"; // of Okabe and Ito
const DIVERGING = [[0, "#5e3c99"], [0.5, "#f7f7f7"], [1, "#e66101"]];
const LABELS = {
  mean_offset: "mean offset", log_var_ratio: "ln variance ratio", mean_below: "mean below",
  mean_above: "mean above", var_below: "variance below", var_above: "variance above",
  between_share: "share between images", between_share_centred: "the same after centring",
  output_mean: "mean output", output_mean_std: "spread of the mean outputs",
  class_correlation: "correlation with the class",
  class_correlation_chance: "the same by chance",
  class_correlation_amplified: "the same, amplified channels",
  class_correlation_damped: "the same, damped channels",
  center_weight_class_correlation: "centring weight and class correlation, Pearson",
  center_weight: "centring weight", center_reverses: "channels reversed",
  center_removes: "channels without instance mean", center_damps: "channels damped",
  center_neutral: "channels of BatchNorm", center_amplifies: "channels amplified",
  gate_mean: "gate", gate_spread: "spread of the gate", gate_saturated: "gate saturated",
  gate_inert: "gate inert", gain: "gain", mean_shift: "shift of the mean",
  log_var_shift: "shift of ln variance", shift: "shift",
};
const label = (name) => LABELS[name] || name;
const show = (value) => value == null ? "–"
  : Number.isInteger(value) ? String(value) : value.toPrecision(3).replace("-", "−");
const option = (text, value) => new Option(text, value);

function draw(id, traces, layout) {
  const axis = { gridcolor: line, zerolinecolor: GREY, automargin: true };
  const whole = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: "system-ui, sans-serif" }, margin: { t: 20, r: 20, b: 50, l: 60 },
    ...layout };
  for (const name of Object.keys(layout).concat("xaxis", "yaxis"))
    if (/^[xy]axis/.test(name)) whole[name] = { ...axis, ...layout[name] };
  return Plotly.react(byId(id), traces, whole, { responsive: true, displaylogo: false });
}

const tall = (count) => Math.max(260, 110 + 19 * count);

function heat() {
  const names = layers.map((l) => l.layer);
  const trace = (columns, axis, extra) => ({
    type: "heatmap", x: columns.map(label), y: names, xaxis: axis,
    z: layers.map((l) => columns.map((c) => l[c])), hoverongaps: false,
    hovertemplate: "%{y}<br>%{x}: %{z:.4g}<extra></extra>", ...extra,
  });
  const shares = ["mean_below", "mean_above", "var_below", "var_above", "between_share"];
  const bar = { thickness: 10, orientation: "h", y: -0.02, yanchor: "top", ypad: 0, len: 0.45 };
  draw("heat", [
    trace(shares, "x", { zmin: 0, zmax: 1, colorscale: "Cividis", colorbar: { ...bar, x: 0.3 } }),
    trace(["mean_offset", "log_var_ratio"], "x2",
      { zmin: -1, zmax: 1, colorscale: DIVERGING, colorbar: { ...bar, x: 0.85, len: 0.25 } }),
  ], { height: tall(layers.length) + 60, xaxis: { domain: [0, 0.66], side: "top" },
    xaxis2: { domain: [0.7, 1], side: "top" },
    yaxis: { autorange: "reversed", type: "category" }, margin: { t: 110, r: 20, b: 60, l: 60 } });
  byId("heat").on("plotly_click", (event) => {
    byId("layer").value = event.points[0].pointIndex[0];
    chooseLayer();
  });
}

const chosen = () => layers[byId("layer").value];

function chooseLayer() {
  const layer = chosen();
  const columns = Object.keys(layer.per_channel);
  const before = byId("column").value;
  byId("column").replaceChildren(...columns.map((name) => option(label(name), name)));
  if (columns.includes(before)) byId("column").value = before;
  const count = columns.length ? layer.per_channel[columns[0]].length : 0;
  byId("channel").replaceChildren(
    ...Array.from({ length: count }, (_, i) => option(i * data.step, i)));
  byId("map-channel").replaceChildren(...layer.maps.map((m, i) => option(m.channel, i)));
  histogram();
  numbers();
  spread();
  maps();
}

function histogram() {
  const name = byId("column").value;
  const values = name ? chosen().per_channel[name] : [];
  const mark = values[byId("channel").value];
  const shapes = mark == null ? []
    : [{ type: "line", x0: mark, x1: mark, yref: "paper", y0: 0, y1: 1, line: { color: ORANGE, width: 2 } }];
  draw("histogram", [{ type: "histogram", x: values, nbinsx: 40, marker: { color: BLUE },
    hovertemplate: "%{x}: %{y} channels<extra></extra>" }],
  { height: 320, shapes, xaxis: { title: { text: name ? label(name) : "" } },
    yaxis: { title: { text: "channels" } } });
}

function numbers() {
  const layer = chosen(), channel = byId("channel").value;
  const names = Object.keys(LABELS).filter((n) => layer[n] != null || layer.per_channel[n]);
  byId("numbers").tBodies[0].replaceChildren(...names.map((name) => {
    const row = document.createElement("tr");
    row.dataset.name = name;
    const own = layer.per_channel[name];
    for (const text of [label(name), show(layer[name]), own ? show(own[channel]) : ""])
      row.insertCell().textContent = text;
    return row;
  }));
}

function spread() {
  const layer = chosen();
  const traces = layers.flatMap((l) => ["mean", "log_var"].map((name, i) => ({
    type: "scatter", mode: "lines", x: l.batch_spread.map((s) => s.size), name: l.layer,
    y: l.batch_spread.map((s) => s[name]), showlegend: false,
    xaxis: i ? "x2" : "x", yaxis: i ? "y2" : "y", opacity: l === layer ? 1 : 0.35,
    line: { color: l === layer ? ORANGE : GREY, width: l === layer ? 4 : 1 },
    hovertemplate: l.layer + "<br>batches of %{x}: %{y:.3g}<extra></extra>",
  })));
  const x = { type: "log", dtick: Math.log10(2), title: { text: "batch size" } };
  draw("spread", traces, { height: 340, grid: { rows: 1, columns: 2, pattern: "independent" },
    xaxis: x, xaxis2: x,
    yaxis: { rangemode: "tozero", title: { text: "spread of the mean (standard deviations)" } },
    yaxis2: { rangemode: "tozero", title: { text: "spread of ln variance" } } });
}

function maps() {
  const entry = chosen().maps[byId("map-channel").value];
  const cells = [];
  const add = (text, content) => {
    const name = document.createElement("div");
    name.textContent = text;
    cells.push(name, content);
  };
  const picture = (source, text) => {
    const image = document.createElement("img");
    image.src = source;
    image.alt = text;
    return image;
  };
  const texts = (values) => {
    const row = document.createElement("div");
    row.className = "texts";
    row.append(...values.map((value) => {
      const cell = document.createElement("span");
      cell.textContent = show(value);
      return cell;
    }));
    return row;
  };
  if (entry) {
    add("image", picture(data.images, "the images"));
    for (const [name, strip] of Object.entries(entry.stages)) add(name, picture(strip, name));
    add("mean, without calibration", texts(entry.offsets));
    if (entry.gates.length) add("gate", texts(entry.gates));
  } else {
    add("This layer has no feature maps to show.", document.createElement("div"));
  }
  byId("maps").replaceChildren(...cells);
}

const calibrated = layers.filter((l) => l.per_channel.center_weight || l.per_channel.gate_mean);

function ridges() {
  const name = byId("parameter").value;
  const traces = calibrated.filter((l) => l.per_channel[name]).map((l) => ({
    type: "violin", x: l.per_channel[name], y0: l.layer, name: l.layer, orientation: "h",
    side: "negative", width: 1.7, points: false, spanmode: "hard", meanline: { visible: true },
    line: { color: BLUE, width: 1 }, fillcolor: "rgba(0,114,178,0.35)", showlegend: false,
    hoverinfo: "x+name",
  }));
  draw("ridges", traces, { height: tall(1.6 * traces.length), violinmode: "overlay",
    xaxis: { title: { text: label(name) } },
    yaxis: { autorange: "reversed", type: "category" } });
}

function evenness() {
  draw("evenness", [{ type: "scatter", mode: "lines+markers", x: layers.map((l) => l.layer),
    y: layers.map((l) => l.output_mean_std), line: { color: BLUE },
    hovertemplate: "%{x}: %{y:.3g}<extra></extra>" }],
  { height: 340, xaxis: { type: "category" },
    yaxis: { rangemode: "tozero", title: { text: "standard deviation of the channels' means" } } });
}

function shift() {
  const ranked = layers.filter((l) => l.shift != null).sort((a, b) => b.shift - a.shift);
  draw("shift", [{ type: "bar", orientation: "h", y: ranked.map((l) => l.layer),
    x: ranked.map((l) => l.shift), marker: { color: BLUE },
    hovertemplate: "%{y}: %{x:.3g}<extra></extra>" }],
  { height: tall(ranked.length), xaxis: { title: { text: "shift (standard deviations)" } },
    yaxis: { autorange: "reversed", type: "category" } });
}

byId("layer").replaceChildren(...layers.map((l, i) => option(l.layer, i)));
byId("layer").onchange = chooseLayer;
byId("channel").onchange = () => { histogram(); numbers(); };
byId("column").onchange = histogram;
byId("map-channel").onchange = maps;
byId("parameter").onchange = ridges;
if (data.step > 1) byId("step").textContent = ` One in ${data.step} is here; diagnosis.json has all.`;
heat();
chooseLayer();
byId("calibration").hidden = !calibrated.length;
byId("no-calibration").hidden = calibrated.length > 0;
if (calibrated.length) {
  const names = ["center_weight", "gate_mean", "gate_spread", "gain"]
    .filter((name) => calibrated.some((l) => l.per_channel[name]));
  byId("parameter").replaceChildren(...names.map((name) => option(label(name), name)));
  ridges();
}
evenness();
if (byId("shift")) shift();
document.body.dataset.ready = "true";

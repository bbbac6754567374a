// Draws the page of a diagnosis from the JSON in it.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const layers = data.layers;
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const BLUE = "#0072b2", ORANGE = "#d55e00", GREY = "#8a8a8a"; // of Okabe and Ito
const LABELS = {
  mean_offset: ["mean offset", "均值偏移"], log_var_ratio: ["ln variance ratio", "ln 方差比"],
  mean_below: ["mean below", "均值偏低"], mean_above: ["mean above", "均值偏高"],
  var_below: ["variance below", "方差偏低"], var_above: ["variance above", "方差偏高"],
  between_share: ["between images", "图像间占比"],
  between_share_centred: ["between images, after centring", "中心化校准后的图像间占比"],
  output_mean: ["mean output", "输出均值"],
  output_mean_std: ["spread of the mean outputs", "输出均值的离散度"],
  center_weight: ["centring weight", "中心化校准权重"],
  center_reverses: ["channels reversed", "反向的通道"],
  center_removes: ["channels without instance mean", "去除实例均值的通道"],
  center_damps: ["channels damped", "减弱的通道"],
  center_neutral: ["channels of BatchNorm", "等同 BatchNorm 的通道"],
  center_amplifies: ["channels amplified", "增强的通道"],
  gate_mean: ["gate", "门控"], gate_spread: ["spread of the gate", "门控的变化幅度"],
  gate_inert: ["gate inert", "门控不起作用"],
  gain: ["gain", "增益"],
};
const WORDS = {
  first: ["the first data", "第一个数据集"], second: ["the second data", "第二个数据集"],
  layer: ["layer", "层"], channels: ["channels", "通道数"],
  evenness: ["spread of the means", "各通道均值的标准差"],
  onePart: [" One in {} is here; diagnosis.json has all.", " 此处每 {} 个显示一个；全部见 diagnosis.json。"],
};
const HEAT = ["mean_below", "mean_above", "var_below", "var_above", "between_share",
  "mean_offset", "log_var_ratio"];
const SIGNED = new Set(["mean_offset", "log_var_ratio"]);
const pick = (pair) => pair[root.lang === "en" ? 0 : 1];
const label = (name) => name in LABELS ? pick(LABELS[name]) : name;
const word = (name) => name in WORDS ? pick(WORDS[name]) : name;
const show = (value) => value == null ? "–"
  : Number.isInteger(value) ? String(value) : value.toPrecision(3).replace("-", "−");
const option = (text, value) => new Option(text, value);
const chosen = () => layers[byId("layer").value];

function draw(id, traces, layout) {
  const style = getComputedStyle(root);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, zerolinecolor: GREY, automargin: true };
  const whole = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: "system-ui, sans-serif" }, margin: { t: 20, r: 20, b: 50, l: 50 },
    ...layout };
  for (const name of Object.keys(layout).concat("xaxis", "yaxis"))
    if (/^[xy]axis/.test(name)) whole[name] = { ...axis, ...layout[name] };
  return Plotly.react(byId(id), traces, whole, { responsive: true, displayModeBar: false });
}

const narrow = () => window.innerWidth < 640;
// The last parts of a layer's name, where no other layer has the same.
const tail = (name) => name.length > 14 ? "…" + name.slice(-13).replace(/^[^.]*\./, "") : name;
const tails = layers.map((l) => tail(l.layer));
const short = (name) => narrow() && tails.filter((t) => t === tail(name)).length === 1
  ? tail(name) : name;
const tall = (count) => Math.max(260, 90 + 17 * count);

// White to the palette's end: blue for shares; orange above and purple below zero.
function colour(name, value) {
  if (value == null) return "transparent";
  const [share, end] = SIGNED.has(name)
    ? [Math.min(1, Math.abs(value)), value < 0 ? [153, 142, 195] : [241, 163, 64]]
    : [Math.min(1, value), [86, 180, 233]];
  return `rgb(${end.map((c) => Math.round(247 + (c - 247) * share)).join(",")})`;
}

// The numbers of a layer on the data that the heat map shows.
const shownOf = (layer) => byId("which")?.value === "second" ? data.second[layer.layer] : layer;

function heat() {
  const head = document.createElement("tr");
  for (const text of [word("layer"), ...HEAT.map(label)]) {
    const cell = document.createElement("th");
    cell.textContent = text;
    head.append(cell);
  }
  byId("heat").tHead.replaceChildren(head);
  byId("heat").tBodies[0].replaceChildren(...layers.map((layer, i) => {
    const row = document.createElement("tr");
    row.setAttribute("aria-selected", String(i === Number(byId("layer").value)));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...layer.layer.split(/(?<=\.)/).flatMap((part) =>
      [part, document.createElement("wbr")]));
    button.onclick = () => { byId("layer").value = i; chooseLayer(); };
    row.insertCell().append(button);
    for (const name of HEAT) {
      const cell = row.insertCell(), value = shownOf(layer)[name];
      cell.textContent = value == null ? "–"
        : SIGNED.has(name) ? (+value.toFixed(1) || 0).toFixed(1).replace("-", "−") : String(Math.round(100 * value));
      cell.style.background = colour(name, value);
      if (value == null) cell.style.color = "inherit";
    }
    return row;
  }));
}

function mark() {
  [...byId("heat").tBodies[0].rows].forEach((row, i) =>
    row.setAttribute("aria-selected", String(i === Number(byId("layer").value))));
}

function chooseLayer() {
  const layer = chosen();
  const columns = Object.keys(LABELS).filter((name) => layer.per_channel[name]);
  const before = byId("column").value;
  byId("column").replaceChildren(...columns.map((name) => option(label(name), name)));
  if (columns.includes(before)) byId("column").value = before;
  const count = columns.length ? layer.per_channel[columns[0]].length : 0;
  byId("channel").replaceChildren(
    ...Array.from({ length: count }, (_, i) => option(i * data.step, i)));
  mark();
  histogram();
  numbers();
}

function bins(values, count) {
  const known = values.filter((v) => v != null);
  const low = Math.min(...known), high = Math.max(...known), width = (high - low) / count || 1;
  const counts = new Array(count).fill(0);
  for (const v of known) counts[Math.min(count - 1, Math.floor((v - low) / width))]++;
  return known.length ? { x: counts.map((_, i) => low + (i + 0.5) * width), y: counts, width }
    : { x: [], y: [], width: 1 };
}

function histogram() {
  const name = byId("column").value;
  const values = name ? chosen().per_channel[name] : [];
  const value = values[byId("channel").value];
  const shapes = value == null ? [] : [{ type: "line", x0: value, x1: value, yref: "paper", y0: 0,
    y1: 1, line: { color: ORANGE, width: 2 } }];
  const { x, y, width } = bins(values, Math.min(40, Math.max(5, Math.ceil(values.length / 3))));
  draw("histogram", [{ type: "bar", x, y, width, marker: { color: BLUE },
    hovertemplate: "%{x:.3g}: %{y}<extra></extra>" }],
  { height: 320, shapes, bargap: 0.02, xaxis: { title: { text: name ? label(name) : "" } },
    yaxis: { title: { text: word("channels") } } });
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

const calibrated = layers.filter((l) => l.per_channel.center_weight || l.per_channel.gate_mean);

function quantile(sorted, q) {
  const at = (sorted.length - 1) * q, low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

function ridges() {
  const name = byId("parameter").value;
  const known = calibrated.filter((l) => l.per_channel[name]);
  const lines = (from, to, width) => ({ type: "scatter", mode: "lines", hoverinfo: "skip",
    line: { color: BLUE, width }, showlegend: false,
    x: known.flatMap((l) => [quantile(sorted(l), from), quantile(sorted(l), to), null]),
    y: known.flatMap((l) => [short(l.layer), short(l.layer), null]) });
  const sorted = (l) => l.per_channel[name].filter((v) => v != null).sort((a, b) => a - b);
  const medians = { type: "scatter", mode: "markers", showlegend: false,
    marker: { color: ORANGE, size: 7 }, x: known.map((l) => quantile(sorted(l), 0.5)),
    y: known.map((l) => short(l.layer)), hovertemplate: "%{y}: %{x:.3g}<extra></extra>" };
  draw("ridges", [lines(0.05, 0.95, 1), lines(0.25, 0.75, 6), medians],
    { height: tall(known.length), xaxis: { title: { text: label(name) } },
      yaxis: { autorange: "reversed", type: "category" } });
}

function evenness() {
  draw("evenness", [{ type: "scatter", mode: "lines+markers", x: layers.map((l) => short(l.layer)),
    y: layers.map((l) => l.output_mean_std), line: { color: BLUE },
    hovertemplate: "%{x}: %{y:.3g}<extra></extra>" }],
  { height: 340, xaxis: { type: "category", showticklabels: !narrow() },
    yaxis: { rangemode: "tozero", title: { text: word("evenness") } } });
}

// The layer with the most pairs in the four cases.
function worst() {
  const off = (l) => HEAT.slice(0, 4).reduce((sum, name) => sum + (l[name] ?? 0), 0);
  return layers.reduce((most, l, i) => off(l) > off(layers[most]) ? i : most, 0);
}

function speak(language) {
  root.lang = language;
  document.title = document.querySelector(`h1 [lang="${language}"]`).textContent;
  for (const select of ["column", "parameter"])
    for (const one of byId(select).options) one.textContent = label(one.value);
  for (const one of byId("which")?.options ?? []) one.textContent = word(one.value);
  if (data.step > 1) byId("step").textContent = word("onePart").replace("{}", data.step);
  heat();
  histogram();
  numbers();
  if (calibrated.length) ridges();
  evenness();
}

byId("layer").replaceChildren(...layers.map((l, i) => option(l.layer, i)));
byId("layer").value = worst();
byId("layer").onchange = chooseLayer;
byId("channel").onchange = () => { histogram(); numbers(); };
byId("column").onchange = histogram;
byId("parameter").onchange = ridges;
byId("calibration").hidden = !calibrated.length;
const parameters = ["center_weight", "gate_mean", "gate_spread", "gain"]
  .filter((name) => calibrated.some((l) => l.per_channel[name]));
byId("parameter").replaceChildren(...parameters.map((name) => option(label(name), name)));
if (byId("which")) byId("which").onchange = heat;
heat();
chooseLayer();
speak((location.hash.slice(1) || navigator.language).startsWith("zh") ? "zh-Hans" : "en");
byId("language").onclick = () => speak(root.lang === "en" ? "zh-Hans" : "en");
document.body.dataset.ready = "true";

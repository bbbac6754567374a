// What the page does: state from the controls, numbers from rbn.js, and everything drawn anew.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SIDE = data.side;
const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const chinese = () => root.lang !== "en";
const say = (en, zh) => (chinese() ? zh : en);

function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Array.from(new Float32Array(bytes.buffer));
}
for (const channel of data.channels) {
  channel.maps = channel.maps.map(unpack);
  channel.response = unpack(channel.response);
}

const SLIDERS = ["brightness", "contrast", "w_m", "w_v", "w_b"];
const PRESETS = ["set-bn", "set-learnt", "set-calibrated"];
const CASES = ["mean-below", "mean-above", "var-below", "var-above"];
const state = { image: 0, channel: 0, statistics: "running", brightness: 0, contrast: 1,
  w_m: 0, w_v: 0, w_b: 1, chosen: null, weights: "set-bn" };

const shown = (value, digits = 2) => {
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
};
const signed = (value) => (value > 0 ? "+" : "") + shown(value);
const percent = (share) => say(`${shown(100 * share, 0)} %`, `${shown(100 * share, 0)}%`);
const channel = () => data.channels[state.channel];
const sigma = () => Math.sqrt(channel().within + channel().between + data.eps);

// The layer's input for photographs of this contrast and brightness.
function inputs(contrast, brightness) {
  const { maps, response } = channel();
  return maps.map((x) => x.map((value, i) => contrast * value + brightness * response[i]));
}

function pass(contrast, brightness, weights) {
  const { gamma, beta } = channel();
  const instances = inputs(contrast, brightness);
  const statistics = state.statistics === "batch" ? rbn.batchMoments(instances) : channel();
  const outputs = rbn.forward(instances, statistics, { ...weights, gamma, beta, eps: data.eps });
  return { instances, statistics, outputs, one: outputs[state.image] };
}

const weightsNow = () => ({ w_m: state.w_m, w_v: state.w_v, w_b: state.w_b });
const PLAIN = { w_m: 0, w_v: 0, w_b: 1 };  // BatchNorm, but for the constant R(1)

// The colours of matplotlib's PuOr, reversed; fit for colour-blind readers.
const COLOURS = ["2d004b", "542788", "8073ac", "b2abd2", "d8daeb", "f7f7f7", "fee0b6", "fdb863",
  "e08214", "b35806", "7f3b08"].map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
function colour(value) {
  const place = (Math.max(-3, Math.min(3, value)) / 6 + 0.5) * (COLOURS.length - 1);
  const i = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[i].map((low, c) => low + (place - i) * (COLOURS[i + 1][c] - low));
}
byId("colours").style.background =
  `linear-gradient(to right, ${COLOURS.map((c) => `rgb(${c})`).join(",")})`;

function paint(name, values, words) {
  const canvas = byId(`map-${name}`);
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(SIDE, SIDE);
  values.forEach((value, i) => pixels.data.set([...colour(value), 255], 4 * i));
  context.putImageData(pixels, 0, 0);
  const { m, v } = rbn.moments(values);
  const facts = [say("mean ", "均值 ") + signed(m), say("std ", "标准差 ") + shown(Math.sqrt(v))];
  byId(`facts-${name}`).replaceChildren(...facts.map((text) => {
    const part = document.createElement("span");
    part.textContent = text;
    return part;
  }));
  canvas.setAttribute("aria-label", `${words}: ${facts.join(say(", ", "，"))}`);
}

const passing = (one) => one.Y.filter((y) => y > 0).length / one.Y.length;

function stages({ instances, one }) {
  const { mean } = channel();
  const unit = sigma();
  const relative = (values) => values.map((value) => (value - mean) / unit);
  paint("X", relative(instances[state.image]), "X");
  paint("X_cm", relative(one.X_cm), "X_cm");
  paint("X_s", one.X_s, "X_s");
  paint("X_cs", one.X_cs, "X_cs");
  paint("Y", one.Y.map((y) => Math.max(y, 0)), "ReLU(Y)");
}

function verdict({ instances }) {
  const { m, v } = rbn.moments(instances[state.image]);
  const moments = state.statistics === "batch" ? rbn.batchMoments(instances) : channel();
  const offset = (m - moments.mean) / Math.sqrt(moments.within + moments.between + data.eps);
  const ratio = (v + data.eps) / (moments.within + moments.between + data.eps);
  const whose = say(state.statistics === "batch" ? "batch" : "running",
    state.statistics === "batch" ? "批次" : "滑动");
  const mean = Math.abs(offset) < 0.3
    ? say("BatchNorm centres it as it should", "BatchNorm 的中心化恰当")
    : offset < 0
      ? say("BatchNorm takes away too much, and features go with it", "BatchNorm 减得太多，代表性特征被移除")
      : say("BatchNorm takes away too little, and noise stays", "BatchNorm 减得太少，噪声留了下来");
  const spread = ratio > 0.6 && ratio < 1.6
    ? say("the intensity comes out as it should", "输出的强度恰当")
    : ratio < 1
      ? say("the intensity comes out too small", "输出的强度偏小")
      : say("the intensity comes out too large", "输出的强度偏大");
  byId("verdict").textContent = `${say(
    `This image's mean lies ${shown(Math.abs(offset))} σ ${offset < 0 ? "below" : "above"} the ${whose} mean: ${mean}. Its variance is ${shown(ratio)} times the ${whose} variance: ${spread}.`,
    `这张图像的均值比${whose}均值${offset < 0 ? "低" : "高"} ${shown(Math.abs(offset))}σ：${mean}。方差是${whose}方差的 ${shown(ratio)} 倍：${spread}。`)} ${effect()}`;
}

// What RBN as it is set does to the chosen image, and where its weights come from.
function effect() {
  const whose = {
    "set-bn": null,
    "set-learnt": ["as this network learnt it", "按该网络学到的值"],
    "set-calibrated": ["fitted to this one image, which no training would do", "只为这张图像拟合，训练并不会这样做"],
    hand: ["as it is set", "按当前设置"],
  }[state.weights];
  if (!whose) return say("RBN is off.", "RBN 未起作用。");
  const [wanted, plain, now] = [pass(1, 0, PLAIN), pass(state.contrast, state.brightness, PLAIN),
    pass(state.contrast, state.brightness, weightsNow())].map(({ one }) => one);
  const far = (one) => Math.abs(one.K_s - wanted.K_s);
  const closer = far(now) < far(plain) - 0.05 ? say("nearer to", "更接近")
    : far(now) > far(plain) + 0.05 ? say("further from", "更远离") : say("as far as before from", "同样远离");
  const std = (one) => shown(Math.sqrt(rbn.moments(one.X_cs).v));
  return say(
    `RBN, ${whose[0]}, moves the mean after BN from ${signed(plain.K_s)} to ${signed(now.K_s)}, ${closer} the ${signed(wanted.K_s)} of the unchanged photograph, and the intensity from ${std(plain)} to ${std(now)} (unchanged: ${std(wanted)}).`,
    `RBN（${whose[1]}）把 BN 之后的均值从 ${signed(plain.K_s)} 变为 ${signed(now.K_s)}，${closer}照片不变时的 ${signed(wanted.K_s)}；强度从 ${std(plain)} 变为 ${std(now)}（照片不变时为 ${std(wanted)}）。`);
}

function seen(now) {
  const rows = [pass(1, 0, PLAIN).one, pass(state.contrast, state.brightness, PLAIN).one, now.one];
  const bodies = byId("seen").tBodies[0].rows;
  rows.forEach((one, i) => {
    const numbers = [signed(one.K_s), shown(Math.sqrt(rbn.moments(one.X_cs).v)), percent(passing(one))];
    numbers.forEach((text, j) => { bodies[i].cells[j + 1].textContent = text; });
  });
  const { K_s, gate } = now.one;
  byId("gate").textContent = `Kₛ = ${signed(K_s)}, R = ${shown(gate, 3)}, R² = ${shown(gate ** 2, 3)}`;
}

const WIDTH = 420, HEIGHT = 160, LIMIT = 4, BINS = 48;
function histogram(id, series, density, words) {
  const x = (value) => (value + LIMIT) / (2 * LIMIT) * WIDTH;
  const heights = series.map(([values]) => {
    const counts = new Array(BINS).fill(0);
    for (const value of values) {
      const bin = Math.floor((value + LIMIT) / (2 * LIMIT) * BINS);
      counts[Math.max(0, Math.min(BINS - 1, bin))] += BINS / (2 * LIMIT * values.length);
    }
    return counts;
  });
  const top = Math.max(0.6, Math.min(2, Math.max(...heights.flat()) * 1.05));
  const y = (value) => HEIGHT - Math.min(value / top, 1) * (HEIGHT - 6);
  const outline = (counts) => counts
    .map((count, i) => `L${x(-LIMIT + i * 2 * LIMIT / BINS)} ${y(count)}H${x(-LIMIT + (i + 1) * 2 * LIMIT / BINS)}`)
    .join("");
  const steps = Array.from({ length: 161 }, (_, i) => -LIMIT + i * LIMIT / 80);
  const parts = [
    `<path d="M0 ${HEIGHT}${outline(heights[0])}V${HEIGHT}Z" fill="var(--grey)" fill-opacity=".55"/>`,
    `<path d="M0 ${HEIGHT}${outline(heights[1])}V${HEIGHT}" fill="var(--orange)" fill-opacity=".15" stroke="var(--orange)" stroke-width="1.8"/>`,
    `<path d="M${steps.map((s) => `${x(s)} ${y(density(s))}`).join("L")}" fill="none" stroke="var(--blue)" stroke-width="2.5"/>`,
    `<line x1="0" x2="${WIDTH}" y1="${HEIGHT}" y2="${HEIGHT}" stroke="currentColor"/>`,
    ...[-3, -2, -1, 0, 1, 2, 3].map((t) => `<text x="${x(t)}" y="${HEIGHT + 15}" text-anchor="middle">${shown(t, 0)}${t ? "σ" : ""}</text>`),
  ];
  byId(id).innerHTML = parts.join("");
  byId(id).setAttribute("aria-label", words);
}

function histograms({ instances, one }) {
  const { mean } = channel();
  const unit = sigma();
  const relative = (values) => values.map((value) => (value - mean) / unit);
  const normal = (x) => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  const spread = Math.sqrt(one.V + data.eps) / unit, centre = (one.E - mean) / unit;
  histogram("histogram-before", [[relative(instances[state.image])], [relative(one.X_cm)]],
    (x) => normal((x - centre) / spread) / spread,
    say("Histogram of X and X_cm", "X 与 X_cm 的直方图"));
  histogram("histogram-after", [[one.X_s], [one.X_cs]], normal,
    say("Histogram of X_s and X_cs", "X_s 与 X_cs 的直方图"));
}

// Thumbnails of the photographs as they are set.
const sources = [];
function photographs() {
  sources.forEach((raw, k) => {
    const context = byId(`image-${k}`).getContext("2d");
    const pixels = context.createImageData(SIDE, SIDE);
    for (let i = 0; i < raw.length; i++) {
      const mean = data.image_mean[i % 4] ?? 0;
      pixels.data[i] = i % 4 === 3 ? 255
        : 255 * (state.contrast * (raw[i] / 255 - mean) + mean + state.brightness);
    }
    context.putImageData(pixels, 0, 0);
  });
}

function render() {
  for (const name of SLIDERS) {
    byId(name).value = state[name];
    byId(`${name}-value`).textContent = name === "contrast" ? shown(state[name]) : signed(state[name]);
  }
  byId("channel").value = state.channel;
  byId("statistics").value = state.statistics;
  document.querySelector(`[name="image"][value="${state.image}"]`).checked = true;
  for (const name of CASES) byId(`case-${name}`).setAttribute("aria-pressed", name === state.chosen);
  for (const name of PRESETS) byId(name).setAttribute("aria-pressed", name === state.weights);
  const now = pass(state.contrast, state.brightness, weightsNow());
  for (const draw of [stages, verdict, seen, histograms]) draw(now);
  photographs();
}

// A case moves the chosen channel by a standard deviation, or changes its contrast.
function choose(name) {
  Object.assign(state, { image: 0, statistics: "running", brightness: 0, contrast: 1, ...PLAIN, chosen: name, weights: "set-bn" });
  const moved = rbn.mean(channel().response) / sigma();
  const wanted = { "mean-below": -1.2, "mean-above": 1.2 }[name];
  if (wanted) {
    const offset = (rbn.mean(channel().maps[0]) - channel().mean) / sigma();
    state.brightness = Math.max(-0.5, Math.min(0.5, Math.round(100 * (wanted - offset) / moved) / 100));
  } else {
    const spread = rbn.moments(channel().maps[0]).v / (channel().within + channel().between);
    state.contrast = Math.max(0.1, Math.min(2.5, Math.round(20 * Math.sqrt({ "var-below": 0.2, "var-above": 2.2 }[name] / spread)) / 20));
  }
  render();
}

// A mean is drawn back by three quarters of its distance, and the gate set so that the intensity is
// R(1), as far as a number below 1 can do that.
function calibrate() {
  Object.assign(state, PLAIN, { weights: "set-calibrated" });
  const far = pass(state.contrast, state.brightness, PLAIN).one.K_s;
  if (Math.abs(far) > 0.5) state.w_m = -0.75;
  const { X_s } = pass(state.contrast, state.brightness, weightsNow()).one;
  const gate = Math.min(0.97, rbn.sigmoid(1) / Math.sqrt(rbn.moments(X_s).v));
  state.w_b = Math.round(20 * Math.log(gate / (1 - gate))) / 20;
  render();
}

// The weights of the chosen channel as the network learnt them.
function learnt() {
  const { w_m, w_v, w_b } = channel();
  Object.assign(state, { w_m, w_v, w_b, weights: "set-learnt" });
  render();
}

function listen() {
  for (const name of SLIDERS) {
    byId(name).addEventListener("input", () => {
      state[name] = Number(byId(name).value);
      if (name.startsWith("w_")) state.weights = "hand";
      render();
    });
  }
  for (const name of ["channel", "statistics"]) {
    byId(name).addEventListener("change", () => {
      state[name] = name === "channel" ? Number(byId(name).value) : byId(name).value;
      render();
    });
  }
  for (const input of document.querySelectorAll('[name="image"]')) {
    input.addEventListener("change", () => { state.image = Number(input.value); render(); });
  }
  for (const name of CASES) byId(`case-${name}`).addEventListener("click", () => choose(name));
  byId("set-bn").addEventListener("click", () => {
    Object.assign(state, PLAIN, { weights: "set-bn" });
    render();
  });
  byId("set-learnt").addEventListener("click", learnt);
  byId("set-calibrated").addEventListener("click", calibrate);
  byId("language").addEventListener("click", () => show(chinese() ? "en" : "zh-Hans"));
}

function show(language) {
  root.lang = language;
  document.title = document.querySelector(`h1 [lang="${language}"]`).textContent;
  for (const option of document.querySelectorAll("option[data-en]")) {
    option.textContent = say(option.dataset.en, option.dataset.zh);
  }
  render();
}

const strip = new Image();
strip.onload = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [strip.width, strip.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(strip, 0, 0);
  for (let k = 0; k < strip.width / SIDE; k++) sources.push(context.getImageData(k * SIDE, 0, SIDE, SIDE).data);
  listen();
  choose("mean-below");
  learnt();
  show((location.hash.slice(1) || navigator.language).startsWith("zh") ? "zh-Hans" : "en");
  document.body.dataset.ready = "true";
};
strip.src = data.images;

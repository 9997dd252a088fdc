import { startTable } from "./table.js";

const byId = (id) => document.getElementById(id);
const isTyping = (target) => target.matches("input:not([type=radio], [type=checkbox]), select, textarea");

/* light and dark */
const root = document.documentElement;
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
function switchTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  localStorage.setItem("visionthink-theme", root.dataset.theme);
}

/* charts: one pointer for all charts of a page, which share the axis of steps */
const charts = () => [...document.querySelectorAll("[data-chart]")];
const nearest = (points, step) => points.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
const shown = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? String(+value.toPrecision(4)) : value.toExponential(2));
let pointed = null;

function point(step) {
  pointed = step;
  for (const chart of charts()) {
    const lines = JSON.parse(chart.dataset.chart);
    const cross = chart.querySelector(".cross");
    chart.querySelector(".at").textContent = "";
    const outputs = chart.querySelectorAll("output");
    const at = nearest(lines.flat(), step ?? 0);
    if (at[0] !== step) {
      cross.setAttribute("visibility", "hidden");
      outputs.forEach((output) => (output.value = ""));
      continue;
    }
    cross.setAttribute("d", `M${at[2]},10V194`);
    cross.setAttribute("visibility", "visible");
    chart.querySelector(".at").textContent = `step ${step}`;
    lines.forEach((points, i) => {
      const p = nearest(points, at[0]);
      outputs[i].value = p[0] === at[0] ? shown(p[1]) : "";
    });
  }
}

function stepAt(chart, clientX) {
  const box = chart.querySelector(":scope > svg").getBoundingClientRect();
  const x = ((clientX - box.left) / box.width) * 440;
  const points = JSON.parse(chart.dataset.chart).flat();
  return points.reduce((best, p) => (Math.abs(p[2] - x) < Math.abs(best[2] - x) ? p : best))[0];
}

function openStep(chart, clientY) {
  if (!chart.dataset.open || pointed === null) return;
  const box = chart.querySelector(":scope > svg").getBoundingClientRect();
  const y = clientY === undefined ? 0 : ((clientY - box.top) / box.height) * 220;
  const at = JSON.parse(chart.dataset.chart).map((points) => nearest(points, pointed));
  const there = [...at.keys()].filter((i) => at[i][0] === pointed);
  const line = there.reduce((best, i) => (Math.abs(at[i][3] - y) < Math.abs(at[best][3] - y) ? i : best));
  const run = encodeURIComponent(JSON.parse(chart.dataset.open)[line]);
  location.assign(`/r/${run}/episodes?set=training&step=${pointed}`);
}

document.addEventListener("pointermove", (event) => {
  const chart = event.target.closest?.("[data-chart]");
  if (chart) point(stepAt(chart, event.clientX));
  else if (pointed !== null && !document.activeElement?.matches("[data-chart]")) point(null);
});
document.addEventListener("click", (event) => {
  const chart = event.target.closest("[data-chart]");
  if (chart && event.target.closest("svg")) {
    point(stepAt(chart, event.clientX));
    openStep(chart, event.clientY);
  }
});

function walkChart(chart, by) {
  const steps = [...new Set(JSON.parse(chart.dataset.chart).flat().map((p) => p[0]))].sort((a, b) => a - b);
  const at = pointed === null ? steps.length - 1 : steps.indexOf(nearest(steps.map((s) => [s]), pointed)[0]) + by;
  point(steps[Math.max(0, Math.min(steps.length - 1, at))]);
}

/* pictures */
const zoom = { view: null, factor: 1 };

function drawZoom() {
  const dialog = byId("zoom");
  const source = document.querySelector(`[data-view="${zoom.view}"]`);
  const image = dialog.querySelector(".canvas img");
  image.src = source.querySelector("img").src;
  image.alt = source.querySelector("img").alt;
  image.style.width = `${source.dataset.width * zoom.factor}px`; // all views at the scale of the full one
  image.parentElement.querySelector("svg")?.remove();
  const boxes = source.parentElement.querySelector("svg");
  if (boxes) image.after(boxes.cloneNode(true));
  dialog.querySelector("output").value = `${zoom.view.includes(":") ? "region" : `${zoom.view} view`}, ${Math.round(100 * zoom.factor)} %`;
}

function openZoom(button) {
  zoom.view = button.dataset.view;
  byId("zoom").showModal();
  const canvas = document.querySelector(".canvas");
  const ratio = button.querySelector("img").naturalHeight / button.querySelector("img").naturalWidth || 1;
  zoom.factor = Math.min(canvas.clientWidth / button.dataset.width, canvas.clientHeight / (button.dataset.width * ratio));
  drawZoom();
}

function changeZoom(how) {
  if (how === "swap") {
    const views = [...new Set([...document.querySelectorAll("[data-view]")].map((button) => button.dataset.view))];
    zoom.view = views[(views.indexOf(zoom.view) + 1) % views.length];
  } else {
    zoom.factor = Math.max(0.05, Math.min(40, zoom.factor * (how === "in" ? 1.5 : 1 / 1.5)));
  }
  drawZoom();
}

document.addEventListener("click", (event) => {
  const picture = event.target.closest(".zoomable");
  const change = event.target.closest("[data-zoom]");
  if (picture) openZoom(picture);
  if (change) changeZoom(change.dataset.zoom);
  if (event.target.closest("#theme")) switchTheme();
  if (event.target.closest("#help-open")) byId("help").showModal();
});

/* colours of tokens */
function startModes() {
  const modes = byId("modes");
  if (!modes) return;
  const kept = localStorage.getItem("visionthink-tokens");
  const apply = (mode) => (byId("turns").className = `by-${mode}`);
  const chosen = [...modes.querySelectorAll("input")].find((input) => input.value === kept);
  if (chosen) {
    chosen.checked = true;
    apply(kept);
  }
  modes.addEventListener("change", (event) => {
    localStorage.setItem("visionthink-tokens", event.target.value);
    apply(event.target.value);
  });
}

/* keyboard */
let table = null;

function selectRow(by) {
  const rows = [...document.querySelectorAll("[data-row]")];
  const focusable = rows.length ? rows : charts();
  if (!focusable.length) return;
  const marked = rows.length ? rows.findIndex((row) => row.ariaSelected === "true") : focusable.indexOf(document.activeElement);
  const next = focusable[Math.max(0, Math.min(focusable.length - 1, marked + by))] ?? focusable[0];
  rows.forEach((row) => (row.ariaSelected = String(row === next)));
  const target = rows.length ? next.querySelector("a") : next;
  target.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function follow(key) {
  const link = document.querySelector(`[data-key="${key}"]`);
  if (link) location.assign(link.href);
  return Boolean(link);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key, target } = event;
  if (isTyping(target)) {
    if (key === "Escape") target.blur();
    return;
  }
  if (byId("zoom")?.open) {
    const how = { x: "swap", "+": "in", "=": "in", "-": "out" }[key];
    if (how) changeZoom(how);
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const by = { j: 1, k: -1 }[key];
  if (by && !follow(key)) table ? table.select(by) : selectRow(by);
  else if (key === "Enter" && table && !target.closest("a, button")) table.open();
  else if (target.matches("[data-chart]") && key.startsWith("Arrow")) walkChart(target, key === "ArrowLeft" ? -1 : key === "ArrowRight" ? 1 : 0);
  else if (target.matches("[data-chart]") && key === "Enter") openStep(target);
  else if (key === "u") follow("u");
  else if (key === "t") switchTheme();
  else if (key === "?") byId("help").showModal();
  else if (key === "0") location.assign("/");
  else if (key >= "1" && key <= "7") document.querySelectorAll(".tabs a")[key - 1]?.click();
  else if (key === "/") {
    event.preventDefault();
    const search = document.querySelector("[type=search]");
    if (search) search.focus();
    else document.querySelectorAll(".tabs a")[2]?.click();
  }
});

/* a live run: the page is fetched again when something was written */
const main = byId("main");
let pulse = main.dataset.live;

async function refresh() {
  const isBusy = document.querySelector("dialog[open]") || document.hidden || isTyping(document.activeElement);
  if (isBusy) return;
  const reply = await fetch(main.dataset.pulse);
  if (!reply.ok) return;
  const found = (await reply.json()).pulse;
  if (found === pulse) return;
  pulse = found;
  if (table) {
    table.load();
    return;
  }
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const opened = [...main.querySelectorAll("details")].map((part) => part.open);
  main.replaceChildren(...page.getElementById("main").childNodes);
  main.querySelectorAll("details").forEach((part, i) => (part.open = opened[i] ?? part.open));
  document.querySelector(".top .state")?.replaceWith(page.querySelector(".top .state"));
  startModes();
}

if (pulse) setInterval(() => refresh().catch(() => {}), 3000); // the server may be gone: the page stays as it is
startModes();
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
if (byId("episodes")) table = startTable();

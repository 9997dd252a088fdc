// The table of episodes: only the rows in sight exist, and are fetched when they come into sight.
const CHUNK = 100;
const MAX_HEIGHT = 16e6; // pixels: browsers draw nothing below that
const MAX_CHUNKS = 60; // that are kept

const COLUMNS = {
  step: (row) => row.step,
  sample: (row) => (row.set === "heldout" ? `${row.sample} ${row.kind.replace("always_", "")}` : `${row.sample} / ${row.index}`),
  question: (row) => row.question,
  answer: (row) => row.answer ?? `(${row.status})`,
  verdict: null,
  need: (row) => row.need ?? "–", // has a column where there is more to choose from than the full view
  tool: (row) => (!row.asked ? "direct" : row.called === "resize_image" || !row.called ? "asked" : `${row.tool_calls} call${row.tool_calls > 1 ? "s" : ""}`),
  visual_tokens: (row) => (row.full_tokens ? `${Math.round((100 * row.visual_tokens) / row.full_tokens)} %` : "–"),
  generated_tokens: (row) => row.generated_tokens,
  reward: (row) => row.reward?.toFixed(2) ?? "–",
  advantage: (row) => (row.advantage === null ? "–" : (row.advantage > 0 ? "+" : "") + row.advantage.toFixed(2)),
  judge: (row) => row.judge ?? "–",
};
const NEEDED = { quarter: "the quarter view", region: "a region", full: "the full view" };
const VERDICTS = new Map([[true, ["right", "good"]], [false, ["wrong", "bad"]], [null, ["no verdict", "none"]]]);

function makeCell(name, row) {
  const cell = document.createElement("td");
  cell.className = name;
  const text = COLUMNS[name]?.(row) ?? "";
  let needed = "";
  if (name === "verdict") {
    const badge = document.createElement("span");
    const [word, kind] = VERDICTS.get(row.is_correct);
    badge.className = `badge ${kind}`;
    badge.textContent = word;
    cell.append(badge);
    return cell;
  }
  const resized = row.called === "resize_image" || !row.called;
  if (name === "tool" && row.kind === "policy" && row.asked && row.is_right_tool === false && (row.need === "region" || !resized)) {
    cell.classList.add("odd");
    cell.title = `called ${row.called}; ${NEEDED[row.need]} is needed`;
    needed = `, ${NEEDED[row.need]} needed`;
  } else if (name === "tool" && row.needs_full !== null && row.asked !== row.needs_full && row.kind === "policy") {
    cell.classList.add("odd");
    cell.title = row.need === "region" ? "a region is needed" : row.needs_full ? "the full view is needed" : "the full view is not needed";
    needed = row.needs_full ? ", needed" : ", not needed";
  }
  if (name === "tool" && row.called && !cell.title) cell.title = row.called + (row.refused_calls ? `; ${row.refused_calls} refused` : "");
  if (name === "need") cell.title = row.need ? `${NEEDED[row.need]} is needed` : "not recorded";
  if (name === "answer" || name === "question") cell.title = text;
  if (name === "visual_tokens") cell.title = `${row.visual_tokens} visual tokens; the full view alone: ${row.full_tokens}`;
  if (name === "sample") {
    const link = document.createElement("a");
    link.href = row.url;
    link.textContent = text;
    cell.append(link);
  } else {
    const isolated = document.createElement("bdi");
    isolated.textContent = text;
    cell.append(isolated);
    if (needed) {
      const told = document.createElement("span");
      told.className = "told"; // hidden beside a column that says what is needed
      told.textContent = needed;
      cell.append(told);
    }
  }
  return cell;
}

export function startTable() {
  const form = document.getElementById("filters");
  const frame = document.getElementById("episodes");
  const body = frame.querySelector("tbody");
  const note = document.getElementById("note");
  const names = [...frame.querySelectorAll("thead th")].map((head) => head.className);
  const chunks = new Map();
  let total = 0;
  let selected = -1;
  let generation = 0;

  const rowHeight = () => (matchMedia("(max-width: 640px)").matches ? 84 : 38);
  const query = () => new URLSearchParams([...new FormData(form)].filter(([, value]) => value));

  async function fetchChunk(number) {
    if (chunks.has(number)) return;
    const mine = generation;
    chunks.set(number, null); // on its way
    const url = query();
    url.set("offset", number * CHUNK);
    url.set("limit", CHUNK);
    const started = performance.now();
    const reply = await fetch(`${form.dataset.rows}?${url}`);
    if (mine !== generation) return;
    if (!reply.ok) {
      note.textContent = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main p")?.textContent ?? "";
      return;
    }
    const found = await reply.json();
    if (mine !== generation) return;
    chunks.set(number, found.rows);
    for (const old of chunks.keys()) if (chunks.size > MAX_CHUNKS && Math.abs(old - number) > 2) chunks.delete(old);
    if (number === 0 || found.total !== total) showTotals(found, performance.now() - started);
    draw();
  }

  function showTotals(found, took) {
    total = found.total;
    const most = Math.floor(MAX_HEIGHT / rowHeight());
    document.getElementById("total").textContent = total.toLocaleString("en");
    note.textContent = total > most ? `the first ${most.toLocaleString("en")} are listed: narrow the filter` : `in ${Math.round(took)} ms`;
    for (const [name, num] of Object.entries(found.presets)) {
      const label = document.querySelector(`[data-count="${name}"]`); // a preset that this run does not have is not listed
      if (label) label.textContent = num.toLocaleString("en");
    }
    total = Math.min(total, most);
  }

  function spacer(height) {
    const row = document.createElement("tr");
    row.className = "spacer";
    row.ariaHidden = "true";
    const cell = row.insertCell();
    cell.colSpan = names.length;
    cell.style.height = `${height}px`;
    return row;
  }

  function draw() {
    const height = rowHeight();
    const first = Math.max(0, Math.floor(frame.scrollTop / height) - 8);
    const last = Math.min(total, first + Math.ceil(frame.clientHeight / height) + 16);
    for (let number = Math.floor(first / CHUNK); number * CHUNK < last; number += 1) fetchChunk(number);
    const rows = [spacer(first * height)];
    for (let at = first; at < last; at += 1) {
      const found = chunks.get(Math.floor(at / CHUNK))?.[at % CHUNK];
      if (!found) {
        rows.push(spacer(height));
        continue;
      }
      const row = document.createElement("tr");
      row.dataset.url = found.url;
      row.ariaRowIndex = at + 2;
      if (at === selected) row.ariaSelected = "true";
      row.append(...names.map((name) => makeCell(name, found)));
      rows.push(row);
    }
    rows.push(spacer((total - last) * height));
    body.replaceChildren(...rows);
    frame.querySelector("table").ariaRowCount = total + 1;
  }

  function load() {
    generation += 1;
    chunks.clear();
    fetchChunk(0);
    draw();
  }

  function changed() {
    if (!form.checkValidity()) return;
    const text = query().toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
    document.querySelectorAll("[data-download]").forEach((link) => (link.search = text));
    const sort = form.elements.sort.value;
    frame.querySelectorAll("[data-sort]").forEach((button) => {
      const is = sort.replace("-", "") === button.dataset.sort;
      button.ariaPressed = String(is);
      button.textContent = button.textContent.replace(/ [↑↓]$/, "") + (is ? (sort.startsWith("-") ? " ↓" : " ↑") : "");
    });
    frame.scrollTop = 0;
    selected = -1;
    load();
  }

  const isNarrow = matchMedia("(max-width: 640px)").matches;
  if (isNarrow) form.querySelector("details").open = [...form.querySelectorAll("select")].some((field) => field.value);

  let typing = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(changed, event.target.matches("[type=search], [name=step]") ? 200 : 0);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changed();
    frame.focus();
  });
  frame.addEventListener("click", (event) => {
    const sort = event.target.closest("[data-sort]")?.dataset.sort;
    const row = event.target.closest("[data-url]");
    if (sort) {
      const now = form.elements.sort.value;
      form.elements.sort.value = now === `-${sort}` ? sort : now === sort ? "" : `-${sort}`;
      changed();
    } else if (row && !event.target.closest("a") && !getSelection().toString()) location.assign(row.dataset.url);
  });
  let isDue = false;
  frame.addEventListener("scroll", () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      draw();
    });
  });
  addEventListener("resize", draw);
  changed();

  return {
    load,
    select(by) {
      selected = Math.max(0, Math.min(total - 1, selected + by));
      const [top, height] = [selected * rowHeight(), rowHeight()];
      if (top < frame.scrollTop) frame.scrollTop = top;
      else if (top + 2 * height > frame.scrollTop + frame.clientHeight) frame.scrollTop = top + 2 * height - frame.clientHeight;
      draw();
    },
    open() {
      const found = chunks.get(Math.floor(selected / CHUNK))?.[selected % CHUNK];
      if (found) location.assign(found.url);
    },
  };
}

"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const rootStyle = () => getComputedStyle(document.documentElement);

  // ---- theme ----
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function applyTheme(isDark) {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    byId("theme").textContent = isDark ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `Use ${isDark ? "light" : "dark"} colours`);
    drawAll();
  }
  byId("theme").addEventListener("click", () => applyTheme(document.documentElement.dataset.theme !== "dark"));
  dark.addEventListener("change", (event) => applyTheme(event.matches));

  // ---- tables that stack on phones: every cell carries the title of its column ----
  document.querySelectorAll("table.stacks").forEach((table) => {
    const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, column) => { cell.dataset.title = titles[column]; });
  });

  // ---- figures ----
  let epsScale = "linear";
  function themeConfig(narrow) {
    const style = rootStyle();
    const colour = (name) => style.getPropertyValue(name).trim();
    return {
      background: null, font: "system-ui, sans-serif", view: { stroke: null }, aria: false,
      axis: { labelColor: colour("--ink"), titleColor: colour("--soft"), gridColor: colour("--grid"), domainColor: colour("--soft"),
        tickColor: colour("--soft"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
      legend: { labelColor: colour("--ink"), labelFontSize: 12, labelLimit: narrow ? 260 : 400,
        columns: narrow ? 1 : 0, layout: { bottom: { anchor: "start", direction: "vertical", margin: 6 } } },
      text: { color: colour("--ink") },
    };
  }
  async function draw(holder) {
    const name = holder.dataset.figure;
    const figure = page.figures[name];
    const spec = structuredClone((epsScale === "log" && figure.log) || figure.spec);
    if (typeof spec.width === "number") {
      spec.width = Math.max(220, holder.clientWidth - 8);
      spec.autosize = { type: "fit-x", contains: "padding" };
    }
    await vegaEmbed(holder, spec, { actions: false, renderer: "svg", config: themeConfig(holder.clientWidth < 520), tooltip: { disableDefaultStyle: false } });
    holder.querySelectorAll("svg").forEach((svg) => { svg.setAttribute("aria-hidden", "true"); svg.setAttribute("focusable", "false"); });
    holder.dataset.drawn = "yes";
  }
  function drawAll(selector = ".chart") {
    const holders = [...document.querySelectorAll(selector)];
    return Promise.all(holders.map(draw)).catch((error) => { console.error(error); });
  }
  document.querySelectorAll("[data-scale]").forEach((button) => button.addEventListener("click", () => {
    epsScale = button.dataset.scale;
    document.querySelectorAll("[data-scale]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    drawAll('.chart[data-figure^="sandwich"]');
  }));
  let width = innerWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });

  // ---- samples: the gallery and the table share one set of filters ----
  const samples = page.samples;
  const PAGE_ROWS = 25;
  const state = { key: "index", down: false, first: 0 };
  function rowsOf(norm) {
    const side = samples.norms[norm];
    return samples.index.map((index, i) => ({
      index, label: samples.classes[samples.label[i]], class: samples.label[i], prediction: samples.classes[samples.prediction[i]],
      outcome: side.outcome[i], radius: side.radius[i], distance: side.distance[i],
      // A misclassified sample has no true radius, hence no gap.
      gap: side.distance[i] === null || side.outcome[i] === "misclassified" ? null : side.distance[i] - side.radius[i],
    }));
  }
  function compare(a, b) {
    const x = a[state.key], y = b[state.key];
    // What no attack found (no distance, no gap) counts as infinitely far.
    const order = x === y ? a.index - b.index : x === null ? 1 : y === null ? -1 : x < y ? -1 : 1;
    return state.down ? -order : order;
  }
  const filters = () => ({ norm: byId("filter-norm").value, label: byId("filter-class").value, outcome: byId("filter-outcome").value });
  const matches = (wanted, row) => (wanted.label === "" || String(row.class) === wanted.label) && (wanted.outcome === "" || row.outcome === wanted.outcome);
  function cell(text, className, tag = "td") {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.textContent = text;
    return element;
  }
  const figures = (value) => (value === null ? "none found" : String(Number(value.toPrecision(4))));
  function showTable(wanted) {
    const rows = (samples.norms[wanted.norm] ? rowsOf(wanted.norm) : []).filter((row) => matches(wanted, row)).sort(compare);
    state.first = Math.max(0, Math.min(state.first, Math.floor((rows.length - 1) / PAGE_ROWS) * PAGE_ROWS));
    const shown = rows.slice(state.first, state.first + PAGE_ROWS);
    byId("sample-table").tBodies[0].replaceChildren(...shown.map((row) => {
      const line = document.createElement("tr");
      const head = cell(row.index, "", "th");
      head.scope = "row";
      const outcome = cell("", "");
      outcome.append(cell(row.outcome, `tag ${row.outcome}`, "span"));
      line.append(head, cell(row.label), cell(row.prediction), outcome, cell(figures(row.radius), "n"), cell(figures(row.distance), "n"), cell(row.gap === null ? "–" : figures(row.gap), "n"));
      return line;
    }));
    byId("place").textContent = rows.length ? `${state.first + 1} to ${state.first + shown.length} of ${rows.length}` : "no sample matches";
    byId("match-count").textContent = `${rows.length} of ${samples.shown} samples`;
    byId("previous").disabled = state.first === 0;
    byId("next").disabled = state.first + PAGE_ROWS >= rows.length;
    document.querySelectorAll("#sample-table th button").forEach((button) => {
      if (button.dataset.sort === state.key) button.parentElement.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else button.parentElement.removeAttribute("aria-sort");
    });
  }
  function showGallery(wanted) {
    const gallery = byId("gallery");
    if (!gallery) return;
    const facts = (card) => ({ class: card.dataset.class, outcome: card.dataset.outcome, index: Number(card.dataset.index),
      radius: Number(card.dataset.radius), distance: Number(card.dataset.distance), gap: Number(card.dataset.gap),
      label: samples.classes[card.dataset.class] });
    const sorted = [...gallery.children].map((card) => ({ card, ...facts(card) })).sort(compare);
    let visible = 0;
    for (const entry of sorted) {
      const fits = entry.card.dataset.norm === wanted.norm && matches(wanted, entry);
      entry.card.hidden = !fits;
      visible += fits ? 1 : 0;
      gallery.append(entry.card);
    }
    byId("no-cards").hidden = visible > 0;
  }
  function show() {
    const wanted = filters();
    const key = byId("sort-key");
    key.value = [...key.options].some((option) => option.value === state.key) ? state.key : "";
    byId("sort-down").checked = state.down;
    showTable(wanted);
    showGallery(wanted);
  }
  if (byId("filters")) {
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["filter-norm", "filter-class", "filter-outcome"]) byId(id).addEventListener("change", () => { state.first = 0; show(); });
    byId("sort-key").addEventListener("change", (event) => { state.key = event.target.value; state.first = 0; show(); });
    byId("sort-down").addEventListener("change", (event) => { state.down = event.target.checked; state.first = 0; show(); });
    document.querySelectorAll("#sample-table th button").forEach((button) => button.addEventListener("click", () => {
      state.down = state.key === button.dataset.sort ? !state.down : false;
      state.key = button.dataset.sort;
      state.first = 0;
      show();
    }));
    byId("previous").addEventListener("click", () => { state.first -= PAGE_ROWS; show(); });
    byId("next").addEventListener("click", () => { state.first += PAGE_ROWS; show(); });
    show();
  }

  applyTheme(dark.matches);
})();

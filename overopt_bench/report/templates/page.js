"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((th, k) => th.querySelector("button").addEventListener("click", () => {
    const up = th.getAttribute("aria-sort") !== "ascending";
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => { const text = row.cells[k].textContent; const n = parseFloat(text); return Number.isNaN(n) ? text : n; };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a), y = key(b);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
for (const box of document.querySelectorAll("details.table")) {
  const field = box.querySelector(".filter"), count = box.querySelector(".count");
  if (field === null) continue;
  const texts = new Map();
  const text = (row) => { if (!texts.has(row)) texts.set(row, [...row.cells].map((c) => c.textContent).join(" ").toLowerCase()); return texts.get(row); };
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/), rows = [...box.querySelector("tbody").rows];
    for (const row of rows) row.hidden = !words.every((word) => text(row).includes(word));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}
for (const box of document.querySelectorAll(".filmstrip")) {
  const strips = JSON.parse(box.querySelector(".strips").textContent);
  const proxy = box.querySelector(".pick-proxy"), prompt = box.querySelector(".pick-prompt");
  const budget = box.querySelector(".budget"), where = box.querySelector(".where"), order = box.querySelector(".order"), film = box.querySelector(".film");
  const fill = (select, names) => { select.replaceChildren(...names.map((n, i) => new Option(n, i))); };
  const picture = (frame, row, kind) => {
    const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
    figure.className = kind;
    image.src = frame.src;
    image.alt = `${row.algorithm} after ${frame.queries} queries`;
    const value = (score, digits) => (score === null ? "-" : score.toFixed(digits));
    const names = strips[proxy.value].rewards;
    const words = kind === "now"
      ? [`${frame.queries} queries`, ...frame.scores.map((score, k) => `${names[k]} ${value(score, 3)}`)]
      : [frame.queries, ...frame.scores.map((score) => value(score, 2))];
    words.forEach((word) => caption.append(word, document.createElement("br")));
    figure.append(image, caption);
    return figure;
  };
  const draw = () => {
    const strip = strips[proxy.value], shown = strip.prompts[prompt.value];
    order.textContent = ["queries", ...strip.rewards].join(", ");
    budget.max = Math.max(...shown.rows.map((r) => r.frames.length)) - 1;
    const k = Math.min(Number(budget.value), Number(budget.max));
    film.replaceChildren(...shown.rows.map((row) => {
      const line = document.createElement("div"), who = document.createElement("div");
      line.className = `row ${row.colour}`;
      who.className = "who";
      who.textContent = row.algorithm;
      const at = Math.min(k, row.frames.length - 1), all = document.createElement("div");
      all.className = "strip";
      all.append(...row.frames.map((frame, n) => picture(frame, row, n === at ? "here" : "other")));
      line.append(who, picture(row.frames[at], row, "now"), all);
      return line;
    }));
    const frames = shown.rows[0].frames;
    where.textContent = `${frames[Math.min(k, frames.length - 1)].queries} queries`;
  };
  fill(proxy, strips.map((s) => s.proxy));
  const prompts = () => fill(prompt, strips[proxy.value].prompts.map((p) => p.prompt));
  prompts();
  proxy.addEventListener("change", () => { prompts(); draw(); });
  prompt.addEventListener("change", draw);
  budget.addEventListener("input", draw);
  draw();
}

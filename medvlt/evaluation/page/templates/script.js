// SPDX-License-Identifier: Apache-2.0
// Theme, sorting, folding and filters of a report. The page works without it.
(() => {
  "use strict";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  const theme = byId("theme");
  const setTheme = (value) => {
    root.style.colorScheme = value || "light dark";
    theme.value = value;
  };
  const remembered = () => {
    try { return localStorage.getItem("medvlt-theme"); } catch { return null; } // some browsers forbid it for files
  };
  const asked = new URLSearchParams(location.search).get("theme") ?? remembered();
  setTheme(["light", "dark"].includes(asked) ? asked : "");
  theme.addEventListener("change", () => {
    setTheme(theme.value);
    try { localStorage.setItem("medvlt-theme", theme.value); } catch { /* not remembered */ }
  });

  const button = (parent, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.append(...parent.childNodes);
    made.addEventListener("click", action);
    parent.append(made);
    return made;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const original = new Map([...table.tBodies].map((body) => [body, [...body.rows].slice(1)]));
    heads.forEach((head, column) => {
      button(head, () => {
        const next = { none: "descending", descending: "ascending", ascending: "none" };
        const order = next[head.getAttribute("aria-sort") ?? "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order !== "none") head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const compare = (a, b) => column === 0
          ? -sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent)
          : sign * (Number(a.cells[column].dataset.sort.replace("-inf", "-1")) -
                    Number(b.cells[column].dataset.sort.replace("-inf", "-1")));
        for (const [body, rows] of original) {
          body.append(...(order === "none" ? rows : [...rows].sort(compare)));
        }
      });
    });
    for (const [body, rows] of original) {
      const fold = button(body.rows[0].cells[0], () => {
        const folded = fold.getAttribute("aria-expanded") === "true";
        fold.setAttribute("aria-expanded", String(!folded));
        rows.forEach((row) => { row.hidden = folded; });
      });
      fold.setAttribute("aria-expanded", "true");
    }
  }

  const form = byId("filters");
  if (form) {
    const fields = ["text", "benchmark", "run", "outcome", "reason"];
    const cards = [...document.querySelectorAll("#cards > .card")];
    const texts = new Map();
    const textOf = (card) => {
      if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
      return texts.get(card);
    };
    const passes = (answer, outcome, reason) => {
      if (reason && answer.dataset.reason !== reason) return false;
      if (outcome === "truncated") return "truncated" in answer.dataset;
      return !outcome || outcome === "changed" || answer.dataset.state === outcome;
    };
    const filter = () => {
      const [text, benchmark, run, outcome, reason] = fields.map((name) => byId(`f-${name}`).value);
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const card of cards) {
        const answers = [...card.querySelectorAll(".answer")].filter((answer) => !run || answer.dataset.run === run);
        const keep = (!benchmark || card.dataset.benchmark === benchmark)
          && (outcome !== "changed" || "changed" in card.dataset)
          && answers.some((answer) => passes(answer, outcome, reason))
          && words.every((word) => textOf(card).includes(word));
        card.hidden = !keep;
        shown += keep ? 1 : 0;
        for (const group of card.querySelectorAll(".group")) group.hidden = Boolean(run) && group.dataset.run !== run;
      }
      byId("f-count").textContent = `${shown} of ${cards.length} questions.`;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    byId("cards").addEventListener("keydown", (event) => {
      const step = { j: 1, k: -1 }[event.key];
      const here = event.target.closest(".card");
      if (!step || !here || event.ctrlKey || event.metaKey || event.altKey) return;
      const visible = cards.filter((card) => !card.hidden);
      const next = visible[visible.indexOf(here) + step];
      if (next) { next.focus(); event.preventDefault(); }
    });
    const asked = new URLSearchParams(location.search);
    for (const name of fields) if (asked.has(name)) byId(`f-${name}`).value = asked.get(name);
    filter();
  }

  addEventListener("beforeprint", () => document.querySelectorAll("#results details").forEach((part) => { part.open = true; }));
  root.dataset.script = "ran";
})();

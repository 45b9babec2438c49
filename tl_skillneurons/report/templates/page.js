(function () {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  for (const one of document.querySelectorAll("details.numbers")) one.open = false;

  // sorting: by the value of a cell where it has one, otherwise by its words
  const collator = new Intl.Collator(undefined, { numeric: true });
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending" && head.classList.contains("n")
          || head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => {
          const one = valueOf(a, column), other = valueOf(b, column);
          return typeof one === "number" && typeof other === "number" ? one - other : collator.compare(one, other);
        });
        body.append(...(down ? rows.reverse() : rows));
      });
    });
    const section = table.closest("section");
    const input = section.querySelector("input[type=search]"), output = section.querySelector("output");
    if (input) input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      let shown = 0;
      for (const row of body.rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        shown += row.hidden ? 0 : 1;
      }
      output.textContent = wanted ? `${shown} of ${body.rows.length}` : "";
    });
  }

  // a link to a neuron opens its section
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  window.addEventListener("hashchange", open);
  open();

  // pictures: ink and grid follow the page; paper is light
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];
  if (window.Plotly) {
    const figures = JSON.parse(document.getElementById("figures").textContent);
    const themes = JSON.parse(document.getElementById("themes").textContent);
    const look = () => themes[dark.matches ? "dark" : "light"];
    for (const [name, figure] of Object.entries(figures)) {
      const plot = document.getElementById("plot-" + name);
      Plotly.newPlot(plot, figure.data, { ...figure.layout, template: look() },
        { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
      drawn.push(plot);
    }
    dark.addEventListener("change", () => drawn.forEach((plot) => Plotly.relayout(plot, { template: look() })));
    window.addEventListener("beforeprint", () => drawn.forEach((plot) =>
      Plotly.relayout(plot, { template: themes.light, autosize: false, width: 660 })));
    window.addEventListener("afterprint", () => drawn.forEach((plot) =>
      Plotly.relayout(plot, { template: look(), autosize: true, width: null })));
  }

  // paper has nothing to click: verdicts are printed open
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.verdict:not([open])")];
    closed.forEach((one) => { one.open = true; });
  });
  window.addEventListener("afterprint", () => { closed.forEach((one) => { one.open = false; }); });
})();

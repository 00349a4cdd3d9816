(function () {
  "use strict";

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  /* The page's colours, for the parts of a layout that have none of their own. */
  function themed(layout) {
    var changed = { "font.color": colour("--soft"), "hoverlabel.bgcolor": colour("--panel"), "hoverlabel.bordercolor": colour("--rule"), "hoverlabel.font.color": colour("--ink") };
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key)) {
        changed[key + ".gridcolor"] = colour("--grid");
        changed[key + ".linecolor"] = colour("--rule");
        changed[key + ".zerolinecolor"] = colour("--rule");
      }
    });
    return changed;
  }

  /* A legend that wraps as text does, above the plot: it never covers data. */
  function legend(place, canvas) {
    var groups = new Map();
    canvas.data.forEach(function (trace, number) {
      if (!trace.name || trace.showlegend === false) { return; }
      var key = trace.legendgroup || trace.name;
      if (!groups.has(key)) { groups.set(key, { trace: trace, numbers: [] }); }
      groups.get(key).numbers.push(number);
    });
    canvas.data.forEach(function (trace, number) {
      if (trace.showlegend === false && trace.legendgroup && groups.has(trace.legendgroup)) {
        groups.get(trace.legendgroup).numbers.push(number);
      }
    });
    if (groups.size < 2) { return; }
    groups.forEach(function (group) {
      var button = document.createElement("button"), swatch = document.createElement("i");
      var lines = /lines/.test(group.trace.mode || "") || group.trace.type === "bar";
      var shade = (group.trace.line || {}).color || (group.trace.marker || {}).color;
      var name = group.trace.name.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      swatch.className = lines ? "" : "dot";
      swatch.style.background = typeof shade === "string" ? shade : colour("--soft");
      button.append(swatch, document.createTextNode(name));
      button.addEventListener("click", function () {
        var shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(shown));
        Plotly.restyle(canvas, { visible: shown }, group.numbers);
      });
      place.append(button);
    });
  }

  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var touch = window.matchMedia("(pointer: coarse)").matches;
  document.querySelectorAll(".canvas").forEach(function (canvas) {
    var figure = JSON.parse(document.getElementById(canvas.dataset.figure).textContent);
    var layout = Object.assign({}, figure.layout, { height: Number(canvas.dataset.height), autosize: true, showlegend: false });
    if (touch) { layout.dragmode = false; } /* a finger scrolls the page */
    var settings = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    Plotly.newPlot(canvas, figure.data, layout, settings).then(function () {
      return Plotly.relayout(canvas, themed(figure.layout));
    }).then(function () {
      var place = canvas.parentElement.querySelector(".legend");
      if (place) { legend(place, canvas); }
      canvas.dataset.drawn = "yes";
    });
    dark.addEventListener("change", function () { Plotly.relayout(canvas, themed(figure.layout)); });
  });

  function value(row, column) {
    var cell = row.cells[column];
    return "order" in cell.dataset ? Number(cell.dataset.order) : cell.textContent.trim();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    if (typeof a === "number") { return -1; } /* cells without a number come last */
    if (typeof b === "number") { return 1; }
    return a.localeCompare(b, undefined, { numeric: true });
  }

  document.querySelectorAll("table.sortable").forEach(function (table) {
    var headings = Array.from(table.tHead.rows[0].cells);
    headings.forEach(function (heading, column) {
      heading.querySelector("button").addEventListener("click", function () {
        var down = heading.getAttribute("aria-sort") === "ascending" ||
          (!heading.hasAttribute("aria-sort") && heading.classList.contains("number"));
        headings.forEach(function (other) { other.removeAttribute("aria-sort"); });
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        var rows = Array.from(table.tBodies[0].rows);
        rows.sort(function (x, y) {
          var a = value(x, column), b = value(y, column);
          if (typeof a !== typeof b) { return compare(a, b); }
          return down ? compare(b, a) : compare(a, b);
        });
        rows.forEach(function (row) { table.tBodies[0].append(row); });
      });
    });
  });
})();

// Draws the figures with plotly.js over the static ones, which stay for print and wherever this script does not run.
(() => {
  "use strict";
  const source = document.getElementById("figure-data");
  if (!source || !window.Plotly) return;
  const { figures, paints } = JSON.parse(source.textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const painted = /^(color|fillcolor|gridcolor|linecolor|tickcolor)$/;
  const dashes = { "-1": "5 3" };

  // The figures come in light colours; the dark ones stand in their place one by one.
  const recoloured = (value, key) => {
    if (Array.isArray(value)) return value.map((item) => recoloured(item, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, recoloured(v, k)]));
    return painted.test(key) && dark.matches && paints[value] ? paints[value] : value;
  };

  const element = (name, attributes = {}, text = "") => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };

  const shapes = {
    circle: "M15 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0", square: "M15.5 3.500h7v7h-7z", diamond: "M19 2l5 5-5 5-5-5z",
    "triangle-up": "M19 2.500l4.500 8h-9z", "triangle-down": "M19 11.500l4.500-8h-9z",
    cross: "M17.500 3h3v2.500h2.500v3h-2.500v2.500h-3v-2.500h-2.500v-3h2.500z",
    x: "M15 4.500l1.500-1.500 2.500 2.500 2.500-2.500 1.500 1.500-2.500 2.500 2.500 2.500-1.500 1.500-2.500-2.500-2.500 2.500-1.500-1.500 2.500-2.500z",
    pentagon: "M19 2.500l4.300 3.200-1.700 5.200h-5.200l-1.700-5.200z",
    star: "M19 2l1.500 3.500 3.700.3-2.800 2.500.8 3.700-3.200-2-3.200 2 .8-3.700-2.800-2.500 3.700-.3z",
    hexagon: "M19 2.500l4 2.200v4.600l-4 2.200-4-2.200v-4.600z",
  };

  // A legend of buttons: plotly's own cannot be reached by keyboard.
  const legendOf = (name, figure, plots) => {
    const list = element("ul", { class: "legend", "aria-label": "Show or hide" });
    for (const entry of figure.legend) {
      const button = element("button", { type: "button", "aria-pressed": "true" });
      const look = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      look.setAttribute("viewBox", "0 0 38 14");
      look.setAttribute("aria-hidden", "true");
      look.setAttribute("class", "swatch slot" + entry.slot);
      const part = (path, cls) => {
        const made = document.createElementNS("http://www.w3.org/2000/svg", "path");
        made.setAttribute("d", path);
        made.setAttribute("class", cls);
        if (cls === "stroke" && (entry.slot > 4 || entry.slot < 0)) made.setAttribute("stroke-dasharray", dashes[entry.slot] || "9 3");
        look.append(made);
      };
      if (entry.mode === "band") part("M6 1h26v12h-26z", "fill band");
      else if (entry.mode !== "points") part("M2 7h34", "stroke");
      if (entry.mode !== "band" && (entry.slot >= 0 || entry.mode === "points")) part(shapes[entry.marker] || shapes.circle, "fill");
      button.append(look, element("span", {}, entry.name));
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        for (const plot of plots) {
          const indices = plot.data.flatMap((trace, i) => (trace.legendgroup === entry.group ? [i] : []));
          if (indices.length) Plotly.restyle(plot, { visible: on }, indices);
        }
      });
      const item = element("li");
      item.append(button);
      list.append(item);
    }
    return list;
  };

  const drawn = new Map();
  const draw = async (holder) => {
    const name = holder.dataset.figure;
    const figure = figures[name];
    const place = holder.querySelector(".interactive");
    const fixed = holder.querySelector(".static");
    if (!figure || drawn.has(name)) return;
    const plots = [];
    drawn.set(name, { figure, plots });
    const grid = element("div", { class: figure.panels.length > 1 ? "panels several" : "panels" });
    try {
      place.hidden = false;
      place.replaceChildren(grid);
      const boxes = figure.panels.map((panel) => {
        const box = element("div", { class: "panel" });
        if (figure.panels.length > 1) box.append(element("p", { class: "panel-title" }, panel.title));
        const plot = element("div", { class: "plot", role: "img", "aria-label": holder.getAttribute("aria-label") });
        if (panel.layout.height) plot.style.height = `${panel.layout.height}px`;
        box.append(plot);
        grid.append(box);
        return plot;
      });
      // All boxes stand before the first is drawn: each takes the width that it will keep.
      for (const [i, panel] of figure.panels.entries()) {
        const layout = Object.assign(recoloured(panel.layout), coarse.matches ? { dragmode: false } : {});
        await Plotly.newPlot(boxes[i], recoloured(panel.data), layout, { displayModeBar: false, responsive: true });
        plots.push(boxes[i]);
      }
      if (figure.legend.length > 1) place.append(legendOf(name, figure, plots));
      holder.classList.add("live");
      fixed.setAttribute("aria-hidden", "true");
    } catch (error) {
      place.hidden = true;
      console.warn("figure " + name + " stays static: " + error);
    }
  };

  const recolour = () => {
    for (const { figure, plots } of drawn.values())
      plots.forEach((plot, i) => Plotly.react(plot, recoloured(figure.panels[i].data), recoloured(figure.panels[i].layout)));
  };
  dark.addEventListener("change", recolour);

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
  }, { rootMargin: "600px" });
  document.querySelectorAll("[data-figure]").forEach((holder) => seen.observe(holder));
})();

(function () {
  "use strict";
  const panels = JSON.parse(document.getElementById("landscape-data").textContent);
  const place = document.getElementById("lines");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)"); // where a finger scrolls the page
  const places = panels.light.map(() => place.appendChild(document.createElement("div")));

  function draw() {
    panels[dark.matches ? "dark" : "light"].forEach((panel, i) => {
      const data = panel.data.map((trace) => ({ ...trace, showlegend: trace.meta === "series" }));
      const legend = { orientation: "h", y: 1.02, yanchor: "bottom" };
      const layout = { height: 380, ...panel.layout, showlegend: true, legend, ...(coarse.matches ? { dragmode: false } : {}) };
      Plotly.react(places[i], data, layout, { responsive: true, displayModeBar: false });
    });
  }

  dark.addEventListener("change", draw);
  draw();
})();

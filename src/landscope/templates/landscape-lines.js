(function () {
  "use strict";
  const panels = JSON.parse(document.getElementById("landscape-data").textContent);
  const place = document.getElementById("lines");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const places = panels.light.map(() => place.appendChild(document.createElement("div")));

  function draw() {
    panels[dark.matches ? "dark" : "light"].forEach((panel, i) => {
      const data = panel.data.map((trace) => ({ ...trace, showlegend: trace.meta === "series" }));
      const legend = { orientation: "h", y: 1.02, yanchor: "bottom" };
      Plotly.react(places[i], data, { height: 380, ...panel.layout, showlegend: true, legend }, { responsive: true, displaylogo: false });
    });
  }

  dark.addEventListener("change", draw);
  draw();
})();

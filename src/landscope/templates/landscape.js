(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("landscape-data").textContent);
  const place = document.getElementById("surface");
  const which = document.getElementById("which");
  const log = document.getElementById("log");
  const cap = document.getElementById("cap");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("screen and (max-width: 56rem)");
  const eyes = { above: { x: 0, y: -0.001, z: 1.9 }, aside: { x: 1.25, y: 1.25, z: 1.25 } };
  let eye = eyes.aside;

  function camera() {
    const far = narrow.matches ? 1.25 : 1;
    return { eye: { x: far * eye.x, y: far * eye.y, z: far * eye.z }, up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: 0 } };
  }

  for (const name of Object.keys(data.values)) {
    const option = document.createElement("option");
    option.value = name;
    option.textContent = name.replaceAll("_", " ");
    which.append(option);
  }

  function finite(value) {
    return typeof value === "number" ? value : null;
  }

  function written(value) {
    return typeof value === "number" ? value.toPrecision(5) : String(value);
  }

  function draw() {
    const values = data.values[which.value];
    const all = values.flat().map(finite).filter((v) => v !== null);
    const positive = which.value.endsWith("loss") && all.length > 0 && Math.min(...all) > 0;
    log.disabled = !positive;
    const logarithm = positive && log.checked;
    const top = cap.value === "" ? Infinity : Number(cap.value);
    const shown = (v) => {
      const x = v === "inf" && top < Infinity ? top : finite(v);
      if (x === null) return null;
      const cut = Math.min(x, top);
      return logarithm ? (cut > 0 ? Math.log10(cut) : null) : cut;
    };
    const label = (logarithm ? "log10 of " : "") + which.value.replaceAll("_", " ");
    const bar = narrow.matches
      ? { title: { text: label, side: "top" }, orientation: "h", thickness: 10, len: 0.9, y: 0, yanchor: "top" }
      : { title: { text: logarithm ? "log10" : "" }, len: 0.7 };
    const ink = dark.matches ? "#e8eaed" : "#1b1f24";
    const z = data.b.map((_, j) => data.a.map((_, i) => shown(values[i][j])));
    const text = data.b.map((b, j) =>
      data.a.map(
        (a, i) =>
          `a ${a.toPrecision(4)}, b ${b.toPrecision(4)}<br>${which.value.replaceAll("_", " ")} ` +
          `${written(values[i][j])}<br>${data.how[data.status[i][j]]}`
      )
    );
    const traces = [
      {
        type: "surface",
        x: data.a,
        y: data.b,
        z,
        text,
        hoverinfo: "text",
        colorscale: "Viridis",
        connectgaps: false,
        opacity: data.paths.length > 0 ? 0.8 : 1,
        contours: { z: { show: true, usecolormap: true, project: { z: true } } },
        colorbar: { tickfont: { color: ink }, ...bar },
      },
    ];
    for (const path of data.paths) {
      const there = path.on_plane[which.value];
      const true_ = path.true[which.value];
      if (!there || !true_) continue;
      const words = path.names.map(
        (name, i) =>
          `${name}<br>true ${written(true_[i])}<br>on the plane ${written(there[i])}` +
          `<br>${path.off_plane[i].toPrecision(4)} off the plane`
      );
      const line = { mode: "lines+markers", type: "scatter3d", hoverinfo: "text", text: words };
      traces.push(
        { ...line, x: path.x, y: path.y, z: there.map(shown), name: `${path.name}: on the plane`,
          marker: { size: 3, color: "#df4e05" }, line: { color: "#df4e05", width: 4 } },
        { ...line, x: path.x, y: path.y, z: true_.map(shown), name: `${path.name}: true`,
          marker: { size: 4, symbol: "diamond", color: "#e22661" }, line: { color: "#e22661", width: 2, dash: "dash" } }
      );
    }
    const axis = (title) => ({ title: { text: title }, color: ink, gridcolor: dark.matches ? "#343b43" : "#dfe3e7" });
    Plotly.react(
      place,
      traces,
      {
        uirevision: "kept",
        height: narrow.matches ? Math.min(620, window.innerWidth + 50) : 620,
        margin: { l: 0, r: 0, t: 8, b: 0 },
        paper_bgcolor: "rgba(0,0,0,0)",
        font: { color: ink, family: "system-ui, sans-serif" },
        showlegend: data.paths.length > 0,
        legend: { x: 0, y: 1 },
        scene: {
          camera: camera(),
          xaxis: axis("a"),
          yaxis: axis("b"),
          zaxis: axis(narrow.matches ? "" : label), // which the bar has where there is no room
          aspectmode: "manual",
          aspectratio: { x: 1, y: 1, z: 0.6 },
        },
      },
      { responsive: true, displayModeBar: false }
    );
  }

  for (const control of [which, log, cap]) control.addEventListener("input", draw);
  for (const change of [dark, narrow]) change.addEventListener("change", draw);
  for (const [name, from] of Object.entries(eyes))
    document.getElementById(name).addEventListener("click", () => {
      eye = from;
      Plotly.relayout(place, { "scene.camera": camera() });
    });
  which.value = data.name;
  log.checked = data.log;
  if (typeof data.cap === "number") cap.value = data.cap;
  draw();
})();

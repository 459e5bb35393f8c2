// Opens what paper has to show, where the browser's CSS cannot.
(() => {
  "use strict";
  const opened = [];
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details.print:not([open])").forEach((part) => { part.open = true; opened.push(part); });
  });
  window.addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });
})();

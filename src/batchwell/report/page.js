"use strict";
// The page is complete without this script; it only adds the theme switch and quick tooltips.
(function () {
  var root = document.documentElement;
  var button = document.getElementById("theme");
  var key = "batchwell-theme";
  function store(value) {
    try {
      if (value !== undefined) localStorage.setItem(key, value);
      return localStorage.getItem(key);
    } catch (error) {
      return null; // storage is closed to local files in some browsers
    }
  }
  function dark() {
    var chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function label() {
    button.textContent = dark() ? "Light" : "Dark";
  }
  var kept = store();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.hidden = false;
  button.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    store(root.dataset.theme);
    label();
  });
  label();

  var tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);
  function show(text, event) {
    tip.textContent = text;
    tip.hidden = false;
    var left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 10) + "px";
  }
  document.querySelectorAll("svg .mark").forEach(function (mark) {
    var title = mark.querySelector("title");
    if (!title || !title.textContent) return;
    var text = title.textContent;
    title.remove(); // else the browser would show its own, slower tooltip as well
    mark.addEventListener("pointermove", function (event) { show(text, event); });
    mark.addEventListener("pointerleave", function () { tip.hidden = true; });
  });
})();

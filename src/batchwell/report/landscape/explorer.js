"use strict";
// Sliders for learning rate and batch size: escape times and shares as the network predicts them.
(function () {
  var box = document.getElementById("explorer");
  if (!box) return;
  var data = JSON.parse(box.dataset.network);
  var m = data.labels.length;
  var eta = box.querySelector("#explorer-eta"), size = box.querySelector("#explorer-size");
  var said = box.querySelector("#explorer-said"), body = box.querySelector("tbody");

  function logRates(b) { // linear in B between the nodes and beyond, as in the library
    var n = data.nodes, k = 0;
    if (n.length === 1) return data.logs[0];
    while (k < n.length - 2 && b > n[k + 1]) k++;
    var s = (b - n[k]) / (n[k + 1] - n[k]);
    return data.logs[k].map(function (low, e) {
      var high = data.logs[k + 1][e];
      if (low === null || high === null) return -Infinity;
      return Math.min(0, low + s * (high - low));
    });
  }
  function generator(rate, b) { // at equal eta / B the rates per unit of time are equal
    var logs = logRates(b * data.eta / rate), q = [];
    for (var i = 0; i < m; i++) q.push(new Float64Array(m));
    data.edges.forEach(function (e, k) {
      var r = Math.exp(logs[k]) * rate / data.eta;
      q[e[0]][e[1]] += r;
      q[e[0]][e[0]] -= r;
    });
    return q;
  }
  function times(a, b) {
    return a.map(function (row) {
      var out = new Float64Array(m);
      for (var k = 0; k < m; k++) {
        if (row[k] === 0) continue;
        for (var j = 0; j < m; j++) out[j] += row[k] * b[k][j];
      }
      return out;
    });
  }
  function law(q, steps) { // start times exp(q steps), by squaring I + q h
    var fastest = 0;
    q.forEach(function (row, i) { fastest = Math.max(fastest, -row[i]); });
    var halvings = Math.max(0, Math.ceil(Math.log2(Math.max(1, fastest * steps * 512))));
    var h = steps / Math.pow(2, halvings);
    var p = q.map(function (row, i) {
      return Float64Array.from(row, function (v, j) { return v * h + (i === j ? 1 : 0); });
    });
    for (var k = 0; k < halvings; k++) p = times(p, p);
    var out = new Float64Array(m);
    data.start.forEach(function (w, i) {
      for (var j = 0; j < m; j++) out[j] += w * p[i][j];
    });
    return out;
  }
  function text(v) {
    if (!isFinite(v)) return "never seen";
    if (v >= 1e7) {
      var parts = v.toExponential(1).split("e+");
      var up = Array.from(parts[1], function (d) { return "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]; }).join("");
      return parts[0] + " × 10" + up;
    }
    return Number(v.toPrecision(3)).toLocaleString("en-US");
  }
  function total(p, members) {
    return members.reduce(function (sum, k) { return sum + p[k]; }, 0);
  }
  function percent(v) { return (100 * v).toFixed(v < 0.1 ? 1 : 0) + "%"; }
  function cell(row, content, head) {
    var c = document.createElement(head ? "th" : "td");
    c.className = head ? "" : "number";
    c.textContent = content;
    row.appendChild(c);
    return c;
  }
  function show() {
    var rate = data.etas[+eta.value], b = data.sizes[+size.value];
    var q = generator(rate, b), p = law(q, data.budget / b);
    var same = b * data.eta / rate, ends = data.measured;
    eta.setAttribute("aria-valuetext", rate);
    size.setAttribute("aria-valuetext", b);
    var note = same < ends[0] || same > ends[1] ? " Extrapolated: no jumps were counted there." : "";
    said.textContent = "η = " + rate + ", B = " + b + ": after " +
      data.budget.toLocaleString("en-US") + " examples " + percent(total(p, data.flat)) +
      " of runs are in the flattest quarter of the minima, " + percent(total(p, data.sharp)) +
      " in the sharpest." + note;
    var order = data.labels.map(function (_, k) { return k; });
    order.sort(function (i, j) { return p[j] - p[i]; });
    body.textContent = "";
    order.slice(0, 10).forEach(function (k) {
      var row = document.createElement("tr");
      cell(row, data.labels[k], true).scope = "row";
      cell(row, data.sharpness[k] === null ? "–" : text(data.sharpness[k]));
      cell(row, text(-1 / q[k][k]));
      cell(row, percent(p[k]));
      var bar = document.createElement("div");
      bar.className = "share-bar";
      bar.style.width = 8 * p[k] + "rem";
      cell(row, "").appendChild(bar);
      body.appendChild(row);
    });
  }
  eta.max = data.etas.length - 1;
  size.max = data.sizes.length - 1;
  eta.value = data.etas.indexOf(data.eta);
  size.value = Math.floor((data.sizes.length - 1) / 2);
  eta.addEventListener("input", show);
  size.addEventListener("input", show);
  box.hidden = false;
  show();
})();

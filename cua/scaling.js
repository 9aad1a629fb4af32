// The page of cua.scaling: the arithmetic of per_token once more, controls, a table and a plot.
(function () {
  "use strict";

  function perToken(model, device, choice, data) {
    const block = device.blocks[choice.b], place = model.placements[choice.placement];
    const qubits = Math.log2(choice.b);
    const settings = !choice.signs ? 1 : choice.b === 4 ? 2 : 1 + qubits;
    const perJob = Math.floor(data.job_executions / choice.shots);
    let circuits = 0, running = 0, blocks = 0, widest = 0, jobs = 0;
    for (const [components, times] of place.steps) {
      const n = Math.ceil(components / choice.b);
      const needed = Math.ceil(n / (block.chains * choice.rounds));
      const used = Math.ceil(n / (block.chains * needed));
      const shotS = used * (block.circuit_s + device.reset_s) + device.rep_delay_s;
      circuits += settings * times * needed;
      running += settings * times * needed * choice.shots * shotS;
      blocks += times * n;
      widest = Math.max(widest, n);
      jobs += times * Math.ceil(settings * needed / perJob);
    }
    const scoring = running + data.job_s * circuits / perJob;
    return {
      parameters: Math.floor(place.stored / choice.b) * choice.b * (choice.b - 1) / 2,
      blocks: blocks, circuits: circuits, cz: block.cz, qubits: qubits * widest,
      scoring_s: scoring, writing_s: running + data.job_s * jobs, usd: scoring * data.usd_per_s,
    };
  }

  function shown(name, value) {
    const fine = name === "scoring_s" || name === "writing_s" || name === "usd";
    const digits = !fine ? 0 : value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
    return value.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  }

  const root = document.currentScript
    ? document.currentScript.closest(".cua-scaling") : document.querySelector(".cua-scaling:not([data-drawn])");
  if (!root) {  // a test of the arithmetic alone
    Object.assign(globalThis, {perToken, shown});
    return;
  }
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const choice = Object.assign({device: 0}, data.start);
  const asked = new URLSearchParams(location.hash.replace(/^#scaling\?/, ""));  // #scaling?b=8&shots=1024: a link to a choice
  if (location.hash.startsWith("#scaling?")) {
    for (const [name, value] of asked) {
      if (name === "placement" && data.placements.includes(value)) choice.placement = value;
      if (name === "device" && data.devices[value]) choice.device = Number(value);
      if (name === "b" && data.devices[0].blocks[value]) choice.b = Number(value);
      if (name === "shots" && value >= 1 && value <= 1e6) choice.shots = Math.floor(Number(value));
      if (name === "rounds" && value >= 1 && value <= 100) choice.rounds = Math.floor(Number(value));
      if (name === "signs") choice.signs = value === "true";
    }
  }

  function control(name, label, options) {
    const select = document.createElement("select");
    select.name = name;
    for (const [value, text] of options) select.add(new Option(text, value));
    if (!options.some(([value]) => String(value) === String(choice[name]))) {
      select.add(new Option(String(choice[name]), choice[name]));
    }
    select.value = String(choice[name]);
    select.addEventListener("change", function () {
      choice[name] = name === "placement" ? select.value : name === "signs" ? select.value === "true" : Number(select.value);
      draw();
    });
    const field = document.createElement("label");
    field.append(label + " ", select);
    return field;
  }

  const powers = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768];
  root.querySelector(".cua-controls").append(
    control("placement", "blocks on", data.placements.map((name) => [name, name])),
    control("b", "block size", Object.keys(data.devices[0].blocks).map((b) => [b, b + "×" + b])),
    control("signs", "signs", [[false, "copied from the input"], [true, "read"]]),
    control("shots", "shots", powers.map((n) => [n, n.toLocaleString("en-US")])),
    control("rounds", "rounds in a shot, at most", [1, 2, 3, 5, 10, 17].map((n) => [n, n])),
    control("device", "device", data.devices.map((device, i) => [i, device.name + ", " + device.qubits + " qubits"])),
  );

  const compute = () => data.models.map((model) => perToken(model, data.devices[choice.device], choice, data));

  function draw() {
    const device = data.devices[choice.device], rows = compute();
    root.querySelectorAll("tbody tr").forEach(function (row, i) {
      row.querySelectorAll("td").forEach(function (cell, j) {
        cell.textContent = shown(data.columns[j], rows[i][data.columns[j]]);
      });
    });
    root.querySelector("caption").textContent = choice.placement + ", " + choice.b + "×" + choice.b + " blocks, " +
      choice.shots.toLocaleString("en-US") + " shots" + (choice.signs ? " in each setting" : "") + ", " + device.name;
    plot(rows);
  }

  function plot(rows) {
    const width = Math.max(300, Math.min(720, root.clientWidth)), narrow = width < 600;
    const height = 340, left = narrow ? 60 : 70, right = narrow ? 20 : 40, top = 24, bottom = 45;
    const xs = data.models.map((model) => Math.log10(model.parameters));
    const ys = rows.map((row) => Math.log10(row.scoring_s));
    const x0 = Math.floor(Math.min(...xs)), x1 = Math.ceil(Math.max(...xs));
    const y0 = Math.floor(Math.min(...ys)), y1 = Math.max(Math.ceil(Math.max(...ys)), y0 + 1);
    const x = (v) => left + (v - x0) / (x1 - x0) * (width - left - right);
    const y = (v) => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
    const units = {8: "100 M", 9: "1 B", 10: "10 B", 11: "100 B", 12: "1 T"};
    let inside = "";
    for (let v = x0; v <= x1; v++) {
      inside += `<line x1="${x(v)}" x2="${x(v)}" y1="${top}" y2="${height - bottom}" class="grid"/>` +
        `<text x="${x(v)}" y="${height - bottom + 16}" text-anchor="middle">${units[v] || "1e" + v}</text>`;
    }
    for (let v = y0; v <= y1; v++) {
      inside += `<line x1="${left}" x2="${width - right}" y1="${y(v)}" y2="${y(v)}" class="grid"/>` +
        `<text x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${(10 ** v).toLocaleString("en-US")}</text>`;
    }
    const taken = [];  // a label goes above its point, or below where another one is in the way
    data.models.forEach(function (model, i) {
      const label = narrow ? (model.name.match(/[\dx.]+[MB]\b/) || [model.name])[0] : model.name;
      const half = 4 * label.length, at = {x: x(xs[i]), y: y(ys[i]) - 10, half: half};
      if (taken.some((one) => Math.abs(one.x - at.x) < one.half + half && Math.abs(one.y - at.y) < 14)) at.y += 29;
      taken.push(at);
      const title = `${model.name}: ${shown("scoring_s", rows[i].scoring_s)} s a token`;
      inside += `<circle cx="${x(xs[i])}" cy="${y(ys[i])}" r="5"><title>${title}</title></circle>` +
        `<text x="${x(xs[i])}" y="${at.y}" text-anchor="middle">${label}</text>`;
    });
    inside += `<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">parameters of the model</text>` +
      `<text transform="translate(14 ${(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">seconds a token, scoring</text>`;
    const says = "Seconds a token against parameters: " + data.models.map((model, i) =>
      model.name + " " + shown("scoring_s", rows[i].scoring_s)).join(", ");
    root.querySelector(".cua-plot").innerHTML =
      `<svg width="${width}" height="${height}" role="img" aria-label="${says}">${inside}</svg>`;
  }

  draw();
  addEventListener("resize", () => plot(compute()));
  root.dataset.drawn = "true";
})();
